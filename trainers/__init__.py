"""Trainers, losses and metrics."""
