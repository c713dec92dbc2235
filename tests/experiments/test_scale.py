"""The driver of one very large velocity, small."""

import dataclasses
import json

import pytest

import sinkflow
from experiments import scale
from experiments.bench import large


@pytest.mark.parametrize(("dim", "storage"), [(2, "auto"), (16, "chunks")])
def test_certificates_are_written(tmp_path, dim, storage):
    config = scale.Config(**scale.Config.SMOKE, dim=dim, storage=storage, out=str(tmp_path))
    result = scale.main(config)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert 0 < result["seconds"] < result["first_call_seconds"]
    for solve in ("cloud to target", "cloud to itself"):
        assert result[solve]["converged"]
        assert 0 < result[solve]["marginal_error"] < 1e-3
        assert result[solve]["neighbours"] >= 1
    assert result["mean_speed"] > 1
    assert "NOT" not in scale.solves_text(result)


def coupling(tmp_path, **changes):
    return scale.Config(
        **scale.Config.SMOKE, work="coupling", dim=3, out=str(tmp_path), seed=1, **changes
    )


def test_a_coupling_is_timed_alone(tmp_path):
    result = scale.main(coupling(tmp_path))
    assert result["cloud to target"]["converged"] and "cloud to itself" not in result
    assert result["value"] > 0


def stand_in(shift):
    """A rival that gives our potential, shifted on half of the target by so many epsilons."""

    def solve(x, y, epsilon, tolerance):
        out = sinkflow.sinkhorn(x, y, epsilon, limits=sinkflow.Limits(tolerance / 2))
        return out.g + shift * epsilon * (y[:, 0] > 0), 0.5, "accepted"

    return lambda: solve


@pytest.mark.parametrize(("shift", "converged"), [(0.0, True), (0.3, False)])
def test_a_rivals_coupling_has_our_certificate(tmp_path, monkeypatch, shift, converged):
    """A rival that gives our potential is certified; one that errs, whatever it says, is not."""
    monkeypatch.setattr(large.flash, "multiscale", stand_in(shift))
    own = scale.main(coupling(tmp_path / "own"))
    result = scale.main(coupling(tmp_path / "rival", library="flash-sinkhorn"))
    assert result["seconds"] == 0.5 and result["rival_says"] == "accepted"
    assert result["cloud to target"]["converged"] == converged
    if converged:
        assert result["value"] == pytest.approx(own["value"], rel=1e-4)


def test_a_rival_far_from_a_plan_gets_no_certificate_of_ours(tmp_path, monkeypatch):
    """A solve that drops its start converges, to a plan that is not the rival's."""
    monkeypatch.setattr(large.flash, "multiscale", stand_in(30.0))
    with pytest.raises(ValueError, match="misses its marginals by half or more; it says: accepted"):
        scale.main(coupling(tmp_path, library="flash-sinkhorn"))
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("changes", [{"dim": 2}, {"work": "velocity"}, {"devices": 2}])
def test_a_rival_that_cannot_do_it_is_refused(tmp_path, changes):
    config = coupling(tmp_path, library="flash-sinkhorn")
    with pytest.raises(ValueError, match="library is flash-sinkhorn, which gives couplings"):
        scale.main(dataclasses.replace(config, **changes))
    assert not list(tmp_path.iterdir())


def test_solves_spread_over_devices(tmp_path):
    """The same velocity with the same certificates, and every device's memory (none on a CPU)."""
    results = [
        scale.main(scale.Config(**scale.Config.SMOKE, devices=n, out=str(tmp_path / str(n))))
        for n in (1, 3)
    ]
    one, spread = results
    assert spread["peak_bytes_of_devices"] == [None] * 3
    assert spread["mean_speed"] == pytest.approx(one["mean_speed"], rel=1e-5)
    for solve in ("cloud to target", "cloud to itself"):
        assert spread[solve] == pytest.approx(one[solve], rel=1e-5, abs=1e-6)
        assert spread[solve]["num_iterations"] == one[solve]["num_iterations"]


@pytest.mark.slow
def test_what_did_not_converge_is_said(tmp_path):
    config = scale.Config(**scale.Config.SMOKE, threshold=1e-9, out=str(tmp_path))
    assert "NOT converged" in scale.solves_text(scale.main(config))


def test_sizes_are_checked(tmp_path):
    config = dataclasses.replace(scale.Config(out=str(tmp_path)), num_particles=0)
    with pytest.raises(ValueError, match="num_particles is 0"):
        scale.main(config)
    config = dataclasses.replace(scale.Config(out=str(tmp_path)), devices=99)
    with pytest.raises(ValueError, match=r"devices is 99; jax sees 4\. .*device_count=99"):
        scale.main(config)
