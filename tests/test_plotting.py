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
CURVES = {
    "ours": plotting.Curve([1, 10, 100], [4.0, 0.5, 0.4], [0.1, 0.1, 0.1]),
    "theirs": plotting.Curve([1, 10], [2.0, 1.0]),
}
FIGURES = {
    "samples": lambda: plotting.samples_against_target({"a": TARGET + 1, "b": TARGET - 1}, TARGET),
    "trajectories": lambda: plotting.trajectories(STATES, TARGET, "paths"),
    "loss": lambda: plotting.loss_curve([200, 400, 600], [3.0, 1.0, 0.5], 200),
    "one panel": lambda: plotting.curves({"task": CURVES}, "evaluations", "W2\nof seeds"),
    "panels": lambda: plotting.curves(
        dict.fromkeys("abcde", CURVES), "evaluations", "W2", levels={"a": {"floor": 0.3}}, most=3.0
    ),
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
    times = np.array([0.0, 0.1, 0.2, 0.4, 0.8, 1.0])
    axis, bar = plotting.trajectories(STATES, TARGET, "paths", "time t", times).axes
    assert axis.get_title() == "paths" and bar.get_ylabel() == "time t"
    pieces, arrows = axis.collections
    segments = np.array(pieces.get_segments()).reshape(len(times) - 1, -1, 2, 2)
    np.testing.assert_array_equal(segments[:, 3, 0], STATES[:-1, 3])
    np.testing.assert_array_equal(segments[:, 3, 1], STATES[1:, 3])
    colours = np.reshape(pieces.get_array(), segments.shape[:2])
    np.testing.assert_allclose(colours[:, 7], (times[:-1] + times[1:]) / 2)
    assert pieces.get_clim() == arrows.get_clim() == (0, 1)
    starts, ends = (np.column_stack(line.get_data()) for line in axis.get_lines()[-2:])
    np.testing.assert_array_equal(starts, STATES[0])
    np.testing.assert_array_equal(ends, STATES[-1])


def test_arrows_of_paths_stand_half_way_and_point_along():
    corner = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0]])[:, None]
    still = np.zeros((3, 1, 2))  # has no direction
    paths = np.concatenate([corner, still], axis=1)
    _, arrows = plotting.trajectories(paths, TARGET, times=np.array([0, 1, 2])).axes[0].collections
    np.testing.assert_allclose(arrows.get_offsets(), [[2.0, 0.0]])
    np.testing.assert_allclose([arrows.U[0], arrows.V[0]], [1.0, 0.0])
    np.testing.assert_allclose(arrows.get_array(), 2 / 3)


def test_many_target_points_are_a_density_under_the_samples():
    many = np.concatenate([RNG.normal(size=(2000, 2)), [[3.9, 3.9]]])
    (axis,) = plotting.samples_against_target({"a": TARGET}, many).axes
    [samples] = axis.get_lines()  # no points of the target
    [density] = axis.collections
    assert density.get_zorder() < samples.get_zorder()
    # Where most points are, there is shade; where none are, there is not.
    shaded = lambda point: any(path.contains_point(point) for path in density.get_paths())
    assert shaded([0, 0]) and shaded([1, -1]) and not shaded([3.5, -3.5])


def test_strays_are_drawn_or_counted():
    near, far = np.array([[2.9, 0.0]]), np.array([[50.0, 0.0], [0.0, -70.0]])
    target = np.clip(TARGET, -2.5, 2.5)
    strays = np.concatenate([TARGET.clip(-2, 2), near, far])
    first, second = plotting.samples_against_target({"a": target, "b": strays}, target).axes
    assert "farther" not in first.get_xlabel()
    assert "2 of 53 lie farther out" in second.get_xlabel()
    assert first.get_xlim() == second.get_xlim() and 2.9 < second.get_xlim()[1] < 10
    assert "[length]" in first.get_xlabel() and "[length]" in first.get_ylabel()


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_and_no_margin_is_empty(tmp_path, name):
    path = tmp_path / "figure.png"
    plotting.save(FIGURES[name](), path)
    _, values = pixels(path)
    ink = np.argwhere(values.min(axis=-1) < 250)
    low, high = ink.min(axis=0), np.subtract(values.shape[:2], ink.max(axis=0))
    assert min(*low, *high) >= 3 and max(*low, *high) <= 20


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_and_no_legend_lies_on_a_panel_or_another_text(name):
    fig = FIGURES[name]()
    fig.draw_without_rendering()
    panels = [axis.bbox for axis in fig.axes if axis.axison]
    legends = [*fig.legends, *(a.get_legend() for a in fig.axes if a.get_legend())]
    words = [legend.get_window_extent() for legend in legends]
    for axis in fig.axes:
        texts = [axis.title]
        if axis.axison:
            texts += [axis.xaxis.label, axis.yaxis.label]
            texts += [text for text in axis.get_xticklabels() if axis.xaxis.get_visible()]
        words += [text.get_window_extent() for text in texts if text.get_text()]
    assert len(words) >= len(panels)
    apart = lambda a, b: not a.padded(-1).overlaps(b.padded(-1))
    assert all(apart(word, panel) for word in words for panel in panels)
    assert all(apart(a, b) for a, b in itertools.combinations(words, 2))


def test_curves_have_bars_a_colour_for_each_label_and_one_legend():
    fig = FIGURES["panels"]()
    *panels, rest = fig.axes
    for axis in panels:
        ours, theirs = (box.lines[0] for box in axis.containers)
        # What is above the most is at the edge, as a triangle.
        np.testing.assert_array_equal(ours.get_ydata(), [3.0, 0.5, 0.4])
        assert axis.get_ylim()[1] == 3.0 and axis.get_xscale() == axis.get_yscale() == "log"
        assert axis.containers[0].has_yerr and not axis.containers[1].has_yerr
        assert ours.get_color() != theirs.get_color() and ours.get_marker() != theirs.get_marker()
        # Bars of the same x stand beside each other.
        assert ours.get_xdata()[0] < 1 < theirs.get_xdata()[0]
    assert len({axis.containers[0].lines[0].get_color() for axis in panels}) == 1
    entries = [text.get_text() for text in rest.get_legend().get_texts()]
    assert entries == ["ours", "theirs", "above 3", "floor"]
    with pytest.raises(ValueError, match="theirs has x"):
        plotting.curves({"a": {"theirs": plotting.Curve([1, 2], [1.0, 0.0])}}, "", "")
    with pytest.raises(ValueError, match="panels is empty"):
        plotting.curves({}, "", "")


def test_blocks_stand_beside_each_other():
    fig = plotting.image_grid({str(i): IMAGES[:10] for i in range(3)}, columns=5, beside=2)
    first, second, third, empty = fig.axes
    fig.draw_without_rendering()
    assert first.bbox.y0 == second.bbox.y0 > third.bbox.y1 and first.bbox.x1 < second.bbox.x0
    assert not empty.get_images()


def test_lines_are_as_thick_as_their_mass():
    x, y, plan = np.zeros((2, 2)), np.ones((2, 2)), np.array([[0.5, 0.0], [0.25, 0.25]])
    axis = plotting.transport(x, y, plan).axes[0]
    widths = [line.get_linewidth() for line in axis.lines]
    assert len(widths) == 3 and widths[1] == widths[2] == widths[0] / 2
    with pytest.raises(ValueError, match="between these clouds"):
        plotting.transport(x, y[:1], plan)


def test_bars_are_the_sums_of_the_plan():
    plan = np.array([[0.5, 0.0, 0.0], [0.0, 0.25, 0.25]])
    fig = plotting.plan(plan)
    rows, columns = fig.axes[1], fig.axes[2]
    *bars, wanted = rows.patches
    assert [bar.get_width() for bar in bars] == [0.5, 0.5]
    np.testing.assert_allclose(wanted.get_data().values, [0.5, 0.5])
    *bars, wanted = columns.patches
    assert [bar.get_height() for bar in bars] == [0.5, 0.25, 0.25]
    np.testing.assert_allclose(wanted.get_data().values, np.ones(3) / 3)
    with pytest.raises(ValueError, match="weights have shapes"):
        plotting.plan(plan, a=np.ones(3) / 3)
    with pytest.raises(ValueError, match="not empty"):
        plotting.plan(np.zeros(3))


def test_arrows_are_the_velocities():
    x, velocity = RNG.normal(size=(2, 5, 2))
    (arrows,) = plotting.velocities(x, velocity, x).axes[0].collections
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V], axis=1), velocity)
    with pytest.raises(ValueError, match="differ in shape"):
        plotting.velocities(x, velocity[:4], x)


def test_image_grid_holds_the_images_in_order():
    first = FIGURES["images"]().axes[0].get_images()[0].get_array()
    assert first.shape[:2] == (2 * 9 + 1, 10 * 9 + 1)  # two rows of ten, borders of one
    for index in (0, 9, 10, 19):
        row, column = divmod(index, 10)
        block = first[9 * row + 1 : 9 * row + 9, 9 * column + 1 : 9 * column + 9]
        np.testing.assert_allclose(2 * block.reshape(8, 8) - 1, IMAGES[index], atol=1e-6)


def test_image_grid_in_colour_keeps_the_channels():
    images = np.zeros((2, 4, 4, 3)) - 1
    images[1, ..., 2] = 3.0  # brighter than there is: cut at one
    [drawn] = plotting.image_grid({"two": images}, columns=2).axes[0].get_images()
    np.testing.assert_array_equal(
        drawn.get_array()[1:5, 6:10], np.broadcast_to([0, 0, 1], (4, 4, 3))
    )
    np.testing.assert_array_equal(drawn.get_array()[1:5, 1:5], np.zeros((4, 4, 3)))


@pytest.mark.parametrize("count", [1, 5, 10, 13])
def test_image_grid_shows_every_image_and_fills_the_last_row_up(count):
    images = np.ones((count, 4, 4))
    [drawn] = plotting.image_grid({"all": images}).axes[0].get_images()
    mosaic = np.asarray(drawn.get_array())
    assert mosaic.shape[:2] == (-(-count // 10) * 5 + 1, 10 * 5 + 1)
    assert mosaic.sum() == images.size  # white pixels; margins and what fills the row are 0


def test_class_bars_have_the_height_of_the_shares():
    fig = FIGURES["classes"]()
    axis, [legend] = fig.axes[0], fig.legends
    assert [bar.get_height() for bar in axis.patches] == [0.5, 0.5, 0.4, 0.6]
    assert [text.get_text() for text in legend.get_texts()] == ["real", "ours"]


def test_loss_curve_is_logarithmic_and_labelled():
    axis = FIGURES["loss"]().axes[0]
    assert axis.get_yscale() == "log" and "steps" in axis.get_xlabel()
    assert "mean of 200 steps" in axis.get_ylabel()
    assert "mean" not in plotting.loss_curve([1, 2], [1.0, 0.5]).axes[0].get_ylabel()
    assert plotting.loss_curve([1, 2], [1.0, -0.5]).axes[0].get_yscale() == "linear"
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
