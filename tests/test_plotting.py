"""Every picture is a readable file, and a failed one leaves nothing behind."""

import itertools
import resource

import numpy as np
import PIL.Image
import pytest

from sinkflow import plotting

RNG = np.random.default_rng(0)
TARGET = RNG.normal(size=(50, 2))
STATES = np.cumsum(RNG.normal(size=(6, 20, 2)), axis=0)
IMAGES = RNG.uniform(-1, 1, (20, 8, 8))
SHARES = {"real": np.array([0.5, 0.5]), "ours": np.array([0.4, 0.6])}
FIGURES = {
    "samples": lambda: plotting.samples_against_target({"a": TARGET + 1, "b": TARGET - 1}, TARGET),
    "trajectories": lambda: plotting.trajectories(STATES, TARGET, "paths"),
    "loss": lambda: plotting.loss_curve([1, 2, 3], [3.0, 1.0, 0.5]),
    "images": lambda: plotting.image_grid({"real": IMAGES, "drawn": IMAGES[:10]}),
    "classes": lambda: plotting.class_histogram(SHARES, ["zero", "one"]),
}


def pixels(path):
    with PIL.Image.open(path) as image:
        image.load()
        return image.format, np.asarray(image.convert("RGB"), float)


@pytest.fixture
def full_disk():
    """Files can grow to 1,000 bytes only; writing more fails half-way, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: limit(1_000)
    limit(soft)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_written_as_png(tmp_path, name):
    path = tmp_path / "figure.png"
    plotting.save(FIGURES[name](), path)
    kind, values = pixels(path)
    assert kind == "PNG" and min(values.shape[:2]) > 100
    assert values.std() > 1  # not blank
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]


def test_each_cloud_has_a_panel_with_its_points():
    fig = FIGURES["samples"]()
    assert [axis.get_title() for axis in fig.axes] == ["a", "b"]
    for axis, shift in zip(fig.axes, (1, -1), strict=True):
        target, points = (np.column_stack(line.get_data()) for line in axis.get_lines())
        np.testing.assert_array_equal(target, TARGET)
        np.testing.assert_array_equal(points, TARGET + shift)


def test_trajectories_draw_every_path_from_start_to_end():
    axis = FIGURES["trajectories"]().axes[0]
    lines = [np.column_stack(line.get_data()) for line in axis.get_lines()]
    paths = [line for line in lines if len(line) == len(STATES)]
    assert len(paths) == STATES.shape[1]
    np.testing.assert_array_equal(paths[3], STATES[:, 3])
    np.testing.assert_array_equal(lines[-1], STATES[-1])
    assert axis.get_title() == "paths"


def test_image_grid_holds_the_images_in_order():
    first = FIGURES["images"]().axes[0].get_images()[0].get_array()
    assert first.shape[:2] == (2 * 9, 10 * 9)  # two rows of ten, each with a border of one
    for index in (0, 9, 10, 19):
        row, column = divmod(index, 10)
        block = first[9 * row + 1 : 9 * row + 9, 9 * column + 1 : 9 * column + 9]
        np.testing.assert_allclose(2 * block.reshape(8, 8) - 1, IMAGES[index], atol=1e-6)


def test_image_grid_in_colour_keeps_the_channels():
    images = np.zeros((2, 4, 4, 3)) - 1
    images[1, ..., 2] = 3.0  # brighter than there is: cut at one
    [drawn] = plotting.image_grid({"two": images}, columns=2).axes[0].get_images()
    np.testing.assert_array_equal(drawn.get_array()[1:, 6:], np.broadcast_to([0, 0, 1], (4, 4, 3)))
    np.testing.assert_array_equal(drawn.get_array()[1:, 1:5], np.zeros((4, 4, 3)))


@pytest.mark.parametrize("count", [1, 5, 10, 13])
def test_image_grid_shows_every_image_and_fills_the_last_row_up(count):
    images = np.ones((count, 4, 4))
    [drawn] = plotting.image_grid({"all": images}).axes[0].get_images()
    mosaic = np.asarray(drawn.get_array())
    assert mosaic.shape[:2] == (-(-count // 10) * 5, 10 * 5)
    assert mosaic.sum() == images.size  # white pixels; margins and what fills the row are 0


def test_class_bars_have_the_height_of_the_shares():
    axis = FIGURES["classes"]().axes[0]
    assert [bar.get_height() for bar in axis.patches] == [0.5, 0.5, 0.4, 0.6]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["real", "ours"]


def test_loss_curve_is_logarithmic_and_labelled():
    axis = FIGURES["loss"]().axes[0]
    assert axis.get_yscale() == "log" and "steps" in axis.get_xlabel()
    np.testing.assert_array_equal(axis.get_lines()[0].get_ydata(), [3.0, 1.0, 0.5])


def test_gif_has_a_frame_for_every_state_and_rests_at_the_end(tmp_path):
    path = tmp_path / "flow.gif"
    plotting.flow_gif(STATES, TARGET, path, np.linspace(0, 1, len(STATES)))
    with PIL.Image.open(path) as image:
        assert image.format == "GIF"
        frames, durations = [], []
        for frame in range(image.n_frames):
            image.seek(frame)
            frames.append(np.asarray(image.convert("RGB"), float))
            durations.append(image.info["duration"])
    # The writer merges equal frames: the last one and the eight of the rest are one.
    assert len(frames) == len(STATES)
    assert durations[-1] > 8.5 * durations[0]
    moved = [np.abs(a - b).mean() for a, b in itertools.pairwise(frames)]
    assert min(moved) > 0.01 and frames[0].std() > 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["flow.gif"]


def test_saving_replaces_an_older_picture(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    plotting.save(FIGURES["loss"](), path)
    assert pixels(path)[0] == "PNG"


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, full_disk, kind):
    path = tmp_path / f"picture.{kind}"
    path.write_bytes(b"old")
    full_disk()
    with pytest.raises(OSError, match="too large"):
        if kind == "png":
            plotting.save(FIGURES["trajectories"](), path)
        else:
            plotting.flow_gif(STATES, TARGET, path, np.linspace(0, 1, len(STATES)))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"
