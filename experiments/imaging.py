"""Image models from data to scores: what the drivers of the data sets share."""

import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, judge, stages
from experiments.image_config import STAGES, ImageConfig, check, check_data
from sinkflow import checkpoint, images, metrics, ode, plotting, sampling

GIGABYTE = 1e9
LABELS = {"nsgf++": "NSGF++", "fm": "FM", "ot-cfm": "OT-CFM"}
SHOWN = 100  # images of a grid
DRAWN_WITH = ("num_samples", "sample_batch", "stepper", "phase_end", "inception_weights")


class Scheme(NamedTuple):
    """A way to sample: ``carry(x0 [n, d])`` gives images [n, d] for ``nfe`` evaluations each."""

    label: str
    nfe: int
    carry: Callable[[jax.Array], jax.Array]


def main(config: ImageConfig) -> dict:
    """Trains what is missing, samples, scores, draws; returns result.json's content."""
    check(config)
    train_set, test_set = (load(config, split) for split in ("train", "test"))
    check_data(config, len(train_set.labels))
    run = common.Run(config)
    print(memory_ahead(config, train_set.pixels))
    score = Scorer(config, train_set, test_set)  # first: what it lacks is said before training
    fields = train_stages(run, config, jnp.asarray(train_set.pixels))
    if len(fields) < len(STAGES[config.method]):
        return {}
    rows, drawn = [], {}
    for scheme in schemes(config, fields):
        row, pixels = judged(run, config, scheme, score)
        rows.append(row)
        if pixels is not None:
            drawn[title(scheme)] = pixels
        print(row_line(row))
    with run.timed("evaluate"):
        references = score.references()
    for name, scores in references.items():
        print(row_line({"method": name, **scores}))
    change = phase_change(config, fields) if config.method == "nsgf++" else None
    result = run.finish(
        rows=rows,
        references=references,
        dropped=judge.indistinct(references),
        dataset=config.dataset,
        num_samples=score.count,
        classifier=score.judge.weights and score.judge.weights.record["sha256"],
        device_memory_gb=common.peak_memory(),
        training=training_records(run, config),
        predicted_time=change and {"mean": float(change[1].mean()), "std": float(change[1].std())},
        pools=pool_records(run),
    )
    draw_pictures(run, config, drawn, train_set.pixels, change)
    print(f"seconds {result['times']}; pictures and result.json in {run.out}")
    return result


def load(config: ImageConfig, split: str) -> images.Images:
    """One split of the config's data set; a smoke run takes enlarged 8x8 digits."""
    folder = "" if config.smoke else config.data_dir
    return judge.load(config.dataset, folder, split, smoke=config.smoke, shape=config.SHAPE)


class Scorer:
    """Scores generated images against as many test images, by all that judges this data set.

    Raises as :func:`experiments.judge.open_inception` where the config names Inception weights.
    """

    def __init__(self, config: ImageConfig, train_set, test_set):
        self.count = min(config.num_samples, len(test_set.labels))
        self.weights = config.inception_weights
        if self.weights:
            judge.open_inception(self.weights)
        dataset = config.dataset if config.CLASSIFIER else None
        self.judge = judge.Judge(dataset, train_set, test_set, num_images=self.count)

    def __call__(self, pixels) -> dict[str, Any]:
        pixels = pixels[: self.count]
        return {**self.judge(pixels), **self.inception(pixels)}

    def inception(self, pixels) -> dict[str, Any]:
        """FID and Inception score, under "inception"; nothing without weights."""
        if not self.weights:
            return {}
        return {"inception": judge.inception(pixels, self.judge.test, self.weights)}

    def references(self) -> dict[str, dict[str, Any]]:
        """Floor and traps."""
        references: dict[str, dict[str, Any]] = {**self.judge.references()}
        shown = {"floor": self.judge.floor_images, **self.judge.traps} if self.weights else {}
        for name, pixels in shown.items():
            references[name] = {**references[name], **self.inception(pixels)}
        return references


def train_stages(run: common.Run, config: ImageConfig, pixels) -> dict[str, stages.Field]:
    """Fields of the stages that are trained, or all of them were already; else those so far."""
    made = stages.make_stages(run, config, pixels)
    steps = config.steps()
    finished = [
        name
        for name in STAGES[config.method]
        if checkpoint.latest_step(run.out / name / "checkpoints") == steps[name]
    ]
    chosen = [name for name in steps if name in finished or name in (config.stages or steps)]
    if config.method == "nsgf++" and "straight" in chosen and "velocity" not in chosen:
        raise ValueError("the straight flow begins as the velocity; train that stage first")
    fields: dict[str, stages.Field] = {}
    for name in chosen:
        # Where they meet, both are fields that carry the same particles to the same images.
        begin = fields["velocity"].params if name == "straight" and "velocity" in fields else None
        fields[name] = stages.learn(run, config, name, made[name], begin)
    missing = [name for name in steps if name not in fields]
    if missing:
        print(f"still to be trained before samples are drawn: {', '.join(missing)}")
    return fields


def memory_ahead(config: ImageConfig, pixels) -> str:
    """What the run will keep on the device beside a training step, which says its own need."""
    floats = 4 * config.dim()
    parts = {"images": pixels.nbytes / GIGABYTE}
    particles = config.num_clouds * config.num_particles
    if config.method == "nsgf++":
        # Twice: its clouds are put together at the end.
        parts["pool"] = 2 * particles * config.flow_steps * floats / GIGABYTE
        called = config.clouds_per_call * config.num_particles
        parts["trajectories"] = 2 * called * config.flow_steps * floats / GIGABYTE
        parts["solver"] = config.clouds_per_call * 16 * config.num_particles**2 / GIGABYTE
    if config.pairing() != "independent":
        parts["pairs"] = 6 * particles * floats / GIGABYTE
    shown = ", ".join(f"{name} {size:.2f}" for name, size in parts.items())
    total = sum(parts.values())
    return f"memory ahead [GB]: at most {total:.2f} and a training step's ({shown})"


def training_records(run: common.Run, config: ImageConfig) -> dict[str, dict]:
    """What the training of each stage took, whenever that was; nothing of one killed at its end."""
    paths = {stage: run.out / stage / stages.TRAINING for stage in STAGES[config.method]}
    return {stage: json.loads(path.read_text()) for stage, path in paths.items() if path.is_file()}


def pool_records(run: common.Run) -> list[dict]:
    """Certificates of the pools that the run has trained on, in their order."""
    paths = sorted((run.out / "pools").glob("*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in paths]


# Sampling.


def schemes(config: ImageConfig, fields: dict[str, stages.Field]) -> list[Scheme]:
    """Every way to sample that ``nfe`` asks for and the method has."""
    label = LABELS[config.method]
    alone = functools.partial(follow, stepper=config.stepper)
    made = []
    for nfe in config.nfe:
        if config.method != "nsgf++":
            made.append(Scheme(label, nfe, functools.partial(alone, fields["straight"], nfe=nfe)))
            continue
        made.append(Scheme("NSGF", nfe, functools.partial(alone, fields["velocity"], nfe=nfe)))
        if nfe >= 3:
            made.append(Scheme(label, nfe, two_phases(config, fields, nfe)))
    return made


def follow(field: stages.Field, x, *, nfe: int, stepper: str, t1: float = 1.0):
    """Particles carried along a field from time 0 to ``t1``."""
    count = jnp.asarray(nfe)  # an array: one program for all counts
    return ode.integrate(field.apply_fn, field.params, x, t1=t1, nfe=count, method=stepper)


def two_phases(config, fields, nfe: int) -> Callable:
    """``carry`` of NSGF++ for ``nfe`` evaluations."""
    first, second = sampling.phase_steps(nfe, config.phase_end)
    velocity, straight, predictor = (fields[name] for name in ("velocity", "straight", "predictor"))
    return functools.partial(
        sampling.two_phase,
        velocity.apply_fn,
        straight.apply_fn,
        predictor.apply_fn,
        (velocity.params, straight.params, predictor.params),
        nsgf_steps=jnp.asarray(first),
        straight_steps=jnp.asarray(second),
        horizon=config.phase_end,
        method=config.stepper,
    )


def phase_change(config, fields) -> tuple[np.ndarray, np.ndarray]:
    """Where NSGF++'s first phase ends [sample_batch, d], and the times predicted from there."""
    velocity, predictor = fields["velocity"], fields["predictor"]
    nfe = sampling.phase_steps(max(3, *config.nfe), config.phase_end)[0]
    end = follow(velocity, noise(config, 0), nfe=nfe, stepper=config.stepper, t1=config.phase_end)
    return np.asarray(end), np.asarray(jax.jit(predictor.apply_fn)(predictor.params, end))


def noise(config, number: int) -> jax.Array:
    """Source samples [sample_batch, d] of one batch; the same for every scheme and method."""
    key = jax.random.fold_in(config.key("noise"), number)
    return jax.random.normal(key, (config.sample_batch, config.dim()))


def judged(run, config, scheme: Scheme, score: Scorer) -> tuple[dict, np.ndarray | None]:
    """A row of the table and its images, from an earlier start if that drew the same.

    A scheme whose samples are not all finite has a row that says so, and no images. Where the
    commit does not tell what code drew them, they are drawn again.
    """
    folder = run.out / "scores"
    folder.mkdir(exist_ok=True)
    file = folder / f"{slug(scheme.label)}-{scheme.nfe}.json"
    drawn_with = {name: getattr(config, name) for name in DRAWN_WITH if hasattr(config, name)}
    drawn_with = {**drawn_with, "commit": run.commit}
    saved = json.loads(file.read_text()) if file.is_file() else {}
    same = saved.get("drawn_with") == drawn_with and not run.commit.endswith(("-dirty", "unknown"))
    if same and samples_file(run, scheme).is_file():
        return saved["row"], load_samples(run, scheme)
    row = {"method": scheme.label, "nfe": scheme.nfe}
    pixels, seconds, failed = draw(run, config, scheme)
    if failed:
        return {**row, "failed": f"{failed} of {len(pixels)} samples are not finite"}, None
    save_samples(run, scheme, pixels)
    with run.timed("evaluate"):
        row = {**row, "seconds_per_10k": seconds, **score(pixels)}
    common.write_json(file, {"drawn_with": drawn_with, "row": row})
    return row, pixels


def title(scheme: Scheme) -> str:
    return f"{scheme.label}, NFE {scheme.nfe}"


def draw(run, config, scheme: Scheme) -> tuple[np.ndarray, float, int]:
    """Images [num_samples, h, w, c] of bytes, seconds per 10,000, and how many are not finite."""
    count = -(-config.num_samples // config.sample_batch)
    batches, finite, times = [], [], []
    with run.timed("sample"):
        for number in common.progress(title(scheme))(range(count)):
            begin, compiled = time.perf_counter(), run.times["compile"]
            x = scheme.carry(noise(config, number))
            finite.append(np.asarray(jnp.isfinite(x).all(axis=1)))
            batches.append(np.asarray(images.unscale(x)).reshape(-1, *config.SHAPE))
            times.append(time.perf_counter() - begin - (run.times["compile"] - compiled))
    # The lower median: the first batch also traces.
    seconds = statistics.median_low(times) * 10_000 / config.sample_batch
    failed = np.sum(~np.concatenate(finite)[: config.num_samples])
    return np.concatenate(batches)[: config.num_samples], seconds, int(failed)


def save_samples(run, scheme: Scheme, pixels) -> None:
    """samples/METHOD-NFE.npz: images [n, h, w, c] of bytes."""
    path = samples_file(run, scheme)
    path.parent.mkdir(exist_ok=True)
    with checkpoint.whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, images=pixels)


def load_samples(run, scheme: Scheme) -> np.ndarray:
    with np.load(samples_file(run, scheme)) as file:
        return file["images"]


def samples_file(run, scheme: Scheme) -> pathlib.Path:
    return run.out / "samples" / f"{slug(scheme.label)}-{scheme.nfe}.npz"


def slug(label: str) -> str:
    return label.lower().replace("+", "p")


def row_line(row: dict[str, Any]) -> str:
    label = f"{row['method']}, NFE {row['nfe']}" if "nfe" in row else row["method"]
    scores = {name: value for name, value in row.items() if name not in ("method", "nfe")}
    scores.update(scores.pop("inception", {}))
    numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
    return (
        f"{label:>16}  "
        + row.get("failed", "")
        + "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    )


# Pictures.


def draw_pictures(run, config, drawn: dict[str, np.ndarray], real, change) -> None:
    """A grid of samples for each scheme, nearest training images, phases, losses."""
    folder = run.out / "pictures"
    folder.mkdir(exist_ok=True)
    columns = 10
    for name, pixels in drawn.items():
        path = folder / f"{slug(name).replace(', nfe ', '-')}.png"
        shown = {f"{config.dataset}, {name}": scaled(pixels[:SHOWN])}
        plotting.save(plotting.image_grid(shown, columns), path)
    if drawn:
        name, pixels = list(drawn.items())[-1]
        some = pixels[: 4 * columns]
        nearest = real[metrics.nearest(judge.flat(some), judge.flat(real))[1]]
        pairs = {name: scaled(some), "nearest training images": scaled(nearest)}
        plotting.save(plotting.image_grid(pairs, columns), folder / "neighbours.png")
    last = f"{LABELS['nsgf++']}, NFE {max(config.nfe)}"
    if change and last in drawn:
        plotting.save(phases(config, change, last, drawn[last]), folder / "phases.png")
    for stage in STAGES[config.method]:
        loss = plotting.loss_curve(*run.stage(stage).logged("loss"))
        plotting.save(loss, folder / f"loss-{stage}.png")


def scaled(pixels) -> np.ndarray:
    return np.asarray(images.scale(pixels))


def phases(config, change, name, final):
    """Source, end of the first phase and end of the second, of the same particles."""
    columns, (middle, tau) = 10, change
    count = 2 * columns
    predicted = f"predicted times {tau.min():.2f} to {tau.max():.2f}"
    blocks = {
        "source": noise(config, 0)[:count],
        f"end of the first phase, {predicted}": middle[:count],
        f"end of the second phase, {name}": scaled(final[:count]),
    }
    shown = {title: np.asarray(block).reshape(-1, *config.SHAPE) for title, block in blocks.items()}
    return plotting.image_grid(shown, columns)
