"""Questions to what all trainers share when they validate: what a user sees of it, and what is logged."""

from tiny_hasrd_ctc import build_ctc_trainer


def validation_line(trainer) -> dict[str, float]:
    return next(line for line in trainer.state.log_history if "eval_loss" in line)


def test_the_speed_of_a_validation_is_logged_beside_its_metrics(tmp_path):
    trainer = build_ctc_trainer(tmp_path, per_device_eval_batch_size=2)  # five rows
    metrics = trainer.evaluate()
    line = validation_line(trainer)
    assert metrics.keys() == {"eval_loss", "eval_cer"} and metrics.items() <= line.items()
    assert line["eval_runtime"] > 0
    rates = {name: line[f"eval_{name}_per_second"] * line["eval_runtime"] for name in ("samples", "steps")}
    assert {name: round(rate) for name, rate in rates.items()} == {"samples": 5, "steps": 3}


def test_another_prefix_is_that_of_the_speed_too(tmp_path):
    trainer = build_ctc_trainer(tmp_path)
    trainer.evaluate(metric_key_prefix="test")
    line = next(line for line in trainer.state.log_history if "test_loss" in line)
    assert "test_samples_per_second" in line and "eval_runtime" not in line


def test_a_validation_shows_how_far_it_is_unless_bars_are_off(tmp_path, capsys):
    for is_off in (False, True):
        trainer = build_ctc_trainer(tmp_path, disable_tqdm=is_off, per_device_eval_batch_size=2)
        trainer.evaluate()
        assert ("validation: " in capsys.readouterr().err) != is_off
