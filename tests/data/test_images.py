"""Image files in every form, each way they can be wrong, and the pixels of a train step."""

import gzip
import hashlib
import io
import struct
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pooch
import pytest

from sinkflow.data import _files, images

COUNT = 3  # images in a file of the small data sets
SPLITS = ["train", "test"]
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
ARCHIVE = "cifar-10-binary.tar.gz"
every_split = pytest.mark.parametrize("split", SPLITS)
every_set = pytest.mark.parametrize("name", images.DATASETS)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def cifar(pixels, labels):
    rows = [
        labels[:, None],
        *(pixels[..., channel].reshape(len(labels), -1) for channel in range(3)),
    ]
    return np.concatenate(rows, axis=1).astype(np.uint8).tobytes()


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def encode(number, member, pixels, labels):
    if "images" in member:
        return idx(pixels[..., 0])
    if "labels" in member:
        return idx(labels)
    part = slice(number * COUNT, (number + 1) * COUNT)
    return cifar(pixels[part], labels[part])


class Published:
    """The three data sets as published, but small: arrays, unpacked files and packed files."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.arrays, self.raw, self.packed, self.datasets = {}, {}, {}, {}
        for name, dataset in images.DATASETS.items():
            self.raw[name] = {}
            for split in SPLITS:
                packages, (_, *shape) = dataset.splits[split]
                count = COUNT * len(packages[0].members)
                pixels = rng.integers(256, size=(count, *shape), dtype=np.uint8)
                labels = rng.integers(10, size=count, dtype=np.uint8)
                self.arrays[name, split] = images.Images(pixels, labels)
                for package in packages:
                    for number, member in enumerate(package.members):
                        self.raw[name][member] = encode(number, member, pixels, labels)
            self.packed[name] = self.pack(name)
            splits = {split: self.shrink(name, split) for split in SPLITS}
            self.datasets[name] = dataset._replace(splits=splits)

    def pack(self, name):
        raw = self.raw[name]
        if name == "cifar10":
            return {ARCHIVE: tar({"readme.html": b"x", **dict(reversed(raw.items()))})}
        return {f"{member}.gz": gzip.compress(content) for member, content in raw.items()}

    def shrink(self, name, split):
        def small(package):
            return package._replace(
                checksum=sha256(self.packed[name][package.url.rpartition("/")[2]]),
                members={
                    member: checksum and sha256(self.raw[name][member])
                    for member, checksum in package.members.items()
                },
            )

        packages = tuple(map(small, images.DATASETS[name].splits[split].packages))
        return _files.Split(packages, self.arrays[name, split].pixels.shape)


@pytest.fixture
def published(monkeypatch):
    small = Published()
    monkeypatch.setattr(images, "DATASETS", small.datasets)
    monkeypatch.delenv("SINKFLOW_DATA", raising=False)
    return small


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def assert_same(actual, expected):
    assert actual.pixels.dtype == actual.labels.dtype == np.uint8
    np.testing.assert_array_equal(actual.pixels, expected.pixels)
    np.testing.assert_array_equal(actual.labels, expected.labels)


def assert_helps(error, name, *words):
    """The message has these words, the addresses of the files and how to name a folder."""
    urls = [package.url for package in images.DATASETS[name].splits["train"].packages]
    for word in (*words, *urls, "--data-dir", "SINKFLOW_DATA"):
        assert str(word) in str(error.value)


# The registry


def test_registry_has_the_published_shapes_and_one_checksum_for_every_file():
    shapes = {
        (name, split): dataset.splits[split].shape
        for name, dataset in images.DATASETS.items()
        for split in SPLITS
    }
    assert shapes == {
        ("mnist", "train"): (60_000, 28, 28, 1),
        ("mnist", "test"): (10_000, 28, 28, 1),
        ("fashion", "train"): (60_000, 28, 28, 1),
        ("fashion", "test"): (10_000, 28, 28, 1),
        ("cifar10", "train"): (50_000, 32, 32, 3),
        ("cifar10", "test"): (10_000, 32, 32, 3),
    }
    checksums = {}
    for dataset in images.DATASETS.values():
        for split in dataset.splits.values():
            for package in split.packages:
                checksums[package.url] = package.checksum
                checksums |= {
                    (package.url, member): c for member, c in package.members.items() if c
                }
    assert len(checksums) == len(set(checksums.values())) == 2 * 8 + 1
    assert all(len(bytes.fromhex(checksum)) == 32 for checksum in checksums.values())


# Readers


@pytest.mark.parametrize("shape", [(), (4,), (0, 2), (2, 3), (2, 3, 5)])
def test_idx_has_the_shape_of_its_header(shape):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.uint8).reshape(shape)
    actual = images.read_idx(idx(array))
    assert actual.shape == shape and actual.dtype == np.uint8
    np.testing.assert_array_equal(actual, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes that begin with 0x;"),
        (b"\0\0\x08", "has 3 bytes"),
        (b"\0\0\x0d\x01\0\0\0\x01abcd", "0x00000d01; the magic number .* is 0x000008"),
        (gzip.compress(b"abcdefgh", mtime=0), "begin with 0x1f8b0800"),
        (b"\0\0\x08\x03\0\0\0\x01", "has 8 bytes; the header alone has 16"),
        (idx(np.zeros((2, 3)))[:-1], r"has 17 bytes; the shape \[2, 3\] in its header makes 18"),
        (idx(np.zeros((2, 3))) + b"x", r"has 19 bytes; the shape \[2, 3\] .* makes 18"),
    ],
)
def test_idx_of_another_kind_or_length_raises(content, message):
    with pytest.raises(ValueError, match=message):
        images.read_idx(content)


def test_cifar_is_channels_then_rows_then_columns():
    # By the definition, with nothing that knows of axes: byte 1 + 1024 c + 32 i + j of a record.
    record = bytearray([7] + [0] * 3072)
    record[1 + 1024 * 2 + 32 * 5 + 9] = 200
    pixels, labels = images.read_cifar(bytes([3] + [1] * 3072) + bytes(record))
    assert pixels.shape == (2, 32, 32, 3) and pixels.dtype == labels.dtype == np.uint8
    assert labels.tolist() == [3, 7]
    assert np.all(pixels[0] == 1)
    assert np.argwhere(pixels[1]).tolist() == [[5, 9, 2]] and pixels[1, 5, 9, 2] == 200


@pytest.mark.parametrize("length", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_cifar_of_broken_records_raises(length):
    with pytest.raises(ValueError, match=f"has {length} bytes; .* records of 3073"):
        images.read_cifar(bytes(length))


# Files on disk


@every_split
@every_set
@pytest.mark.parametrize("form", ["packed", "raw"])
def test_load_finds_files_in_the_folder_and_in_its_subfolders(
    published, tmp_path, name, split, form
):
    folders = {
        "mnist": ["", "mnist"],
        "fashion": ["", "fashion-mnist", "fashion"],
        "cifar10": ["", "cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"],
    }
    for number, folder in enumerate(folders[name]):
        write(tmp_path / str(number) / folder, getattr(published, form)[name])
        actual = images.load(name, tmp_path / str(number), split)
        assert_same(actual, published.arrays[name, split])


def test_load_takes_the_train_split_and_a_folder_as_text(published, tmp_path):
    write(tmp_path, published.packed["mnist"])
    assert_same(images.load("mnist", str(tmp_path)), published.arrays["mnist", "train"])


def test_load_mixes_packed_and_unpacked_files(published, tmp_path):
    write(tmp_path, {IMAGES: published.raw["mnist"][IMAGES]})
    write(tmp_path, {f"{LABELS}.gz": published.packed["mnist"][f"{LABELS}.gz"]})
    assert_same(images.load("mnist", tmp_path), published.arrays["mnist", "train"])


def test_a_file_packed_anew_is_as_good_as_the_published_one(published, tmp_path):
    anew = {f"{k}.gz": gzip.compress(v, 1, mtime=1) for k, v in published.raw["fashion"].items()}
    assert anew.keys() == published.packed["fashion"].keys()
    assert not set(anew.values()) & set(published.packed["fashion"].values())
    write(tmp_path, anew)
    assert_same(images.load("fashion", tmp_path), published.arrays["fashion", "train"])


def test_the_subfolder_is_asked_before_the_folder(published, tmp_path):
    write(tmp_path, published.packed["mnist"])  # with the names of Fashion-MNIST's files
    write(tmp_path / "fashion", published.raw["fashion"])
    for name in ("mnist", "fashion"):
        assert_same(images.load(name, tmp_path), published.arrays[name, "train"])


def test_the_environment_names_the_folder_unless_data_dir_does(published, tmp_path, monkeypatch):
    write(tmp_path / "here" / "mnist", published.raw["mnist"])
    monkeypatch.setenv("SINKFLOW_DATA", str(tmp_path / "here"))
    assert_same(images.load("mnist"), published.arrays["mnist", "train"])
    with pytest.raises(FileNotFoundError, match="there"):
        images.load("mnist", tmp_path / "there")


def test_files_on_disk_need_no_pooch(published, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)  # an import of it raises
    write(tmp_path, published.packed["mnist"])
    assert_same(images.load("mnist", tmp_path), published.arrays["mnist", "train"])


@pytest.mark.parametrize(("name", "split"), [("mnits", "train"), ("mnist", "valid")])
def test_unknown_names_list_the_choices(tmp_path, name, split):
    with pytest.raises(ValueError, match=r"'mnits'|'valid'") as error:
        images.load(name, tmp_path, split)
    choices = SPLITS if name == "mnist" else ["mnist", "fashion", "cifar10"]
    assert all(choice in str(error.value) for choice in choices)


@every_set
def test_missing_files_are_named_with_the_folders_searched(published, tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        images.load(name, tmp_path / "nowhere")
    first = images.DATASETS[name].splits["train"].packages[0]
    subfolders = [tmp_path / "nowhere" / folder for folder in images.DATASETS[name].folders]
    assert_helps(error, name, *first.members, first.url.rpartition("/")[2], *subfolders)


def test_only_the_missing_batch_is_named(published, tmp_path):
    batches = dict(published.raw["cifar10"])
    del batches["data_batch_3.bin"]
    write(tmp_path, batches)
    with pytest.raises(FileNotFoundError) as error:
        images.load("cifar10", tmp_path)
    assert_helps(error, "cifar10", f"neither {ARCHIVE} nor data_batch_3.bin is in")
    assert "data_batch_2" not in str(error.value)
    assert_same(images.load("cifar10", tmp_path, "test"), published.arrays["cifar10", "test"])


def test_truncated_raw_file_is_named_with_both_lengths(published, tmp_path):
    whole = published.raw["mnist"][IMAGES]
    write(tmp_path, {**published.raw["mnist"], IMAGES: whole[:-100]})
    with pytest.raises(ValueError) as error:
        images.load("mnist", tmp_path)
    assert_helps(error, "mnist", tmp_path / IMAGES, len(whole), len(whole) - 100)


def test_packed_file_under_the_raw_name_is_named_with_its_magic_number(published, tmp_path):
    packed = published.packed["mnist"][f"{LABELS}.gz"]
    write(tmp_path, {**published.raw["mnist"], LABELS: packed})
    with pytest.raises(ValueError) as error:
        images.load("mnist", tmp_path)
    assert_helps(error, "mnist", tmp_path / LABELS, "0x1f8b")


@pytest.mark.parametrize("damage", ["truncated", "altered", "html"])
def test_broken_gzip_file_is_named_with_its_length(published, tmp_path, damage):
    whole = published.packed["mnist"][f"{IMAGES}.gz"]
    middle = len(whole) // 2
    content = {
        "truncated": whole[:-100],
        "altered": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "html": b"<html>404</html>",
    }[damage]
    write(tmp_path, {**published.packed["mnist"], f"{IMAGES}.gz": content})
    with pytest.raises(ValueError) as error:
        images.load("mnist", tmp_path)
    assert_helps(error, "mnist", tmp_path / f"{IMAGES}.gz", len(content), "cannot be unpacked")


@pytest.mark.parametrize("form", ["packed", "raw"])
def test_altered_content_is_named_with_both_checksums(published, tmp_path, form):
    good = published.raw["mnist"][IMAGES]
    content = good[:-1] + bytes([good[-1] ^ 1])
    files = {"packed": {f"{IMAGES}.gz": gzip.compress(content)}, "raw": {IMAGES: content}}[form]
    write(tmp_path, {**getattr(published, form)["mnist"], **files})
    with pytest.raises(ValueError) as error:
        images.load("mnist", tmp_path)
    assert_helps(error, "mnist", tmp_path / min(files), sha256(good), sha256(content))


@pytest.mark.parametrize("form", ["packed", "raw"])
def test_fashion_is_not_taken_for_mnist(published, tmp_path, form):
    write(tmp_path, getattr(published, form)["fashion"])
    with pytest.raises(ValueError, match="altered or another file") as error:
        images.load("mnist", tmp_path)
    assert_helps(error, "mnist", tmp_path / IMAGES)


def test_counts_that_disagree_are_named(published, tmp_path):
    labels = published.arrays["mnist", "train"].labels
    write(tmp_path, {**published.raw["mnist"], LABELS: idx(labels[:-1])})
    with pytest.raises(ValueError) as error:
        images.load("mnist", tmp_path)
    assert_helps(
        error, "mnist", tmp_path / IMAGES, tmp_path / LABELS, "labels of shape (2,)", "(3,)"
    )


def test_images_and_labels_that_changed_places_are_named(published, tmp_path):
    raw = published.raw["mnist"]
    write(tmp_path, {IMAGES: raw[LABELS], LABELS: raw[IMAGES]})
    with pytest.raises(ValueError) as error:
        images.load("mnist", tmp_path)
    assert_helps(error, "mnist", tmp_path / IMAGES, "labels of shape (3, 28, 28)")


def test_cifar_without_its_last_record_is_named_with_its_length(published, tmp_path):
    batch = published.raw["cifar10"]["data_batch_4.bin"][:-3073]
    write(tmp_path, {**published.raw["cifar10"], "data_batch_4.bin": batch})
    with pytest.raises(ValueError) as error:
        images.load("cifar10", tmp_path)
    where = f"{tmp_path / 'data_batch_4.bin'} ({len(batch)} bytes)"
    assert_helps(error, "cifar10", where, "(14, 32, 32, 3)", "(15, 32, 32, 3)")


def test_cifar_within_a_record_is_named_with_its_length(published, tmp_path):
    batch = published.raw["cifar10"]["data_batch_4.bin"][:-10]
    write(tmp_path, {**published.raw["cifar10"], "data_batch_4.bin": batch})
    with pytest.raises(ValueError) as error:
        images.load("cifar10", tmp_path)
    assert_helps(error, "cifar10", f"{tmp_path / 'data_batch_4.bin'} has {len(batch)} bytes")


def test_cifar_with_an_eleventh_class_is_refused(published, tmp_path):
    batch = bytes([10]) + published.raw["cifar10"]["data_batch_1.bin"][1:]
    write(tmp_path, {**published.raw["cifar10"], "data_batch_1.bin": batch})
    with pytest.raises(ValueError) as error:
        images.load("cifar10", tmp_path)
    assert_helps(error, "cifar10", tmp_path / "data_batch_1.bin", "a label is 10; there are 10")


def test_cifar_archive_is_verified_before_it_is_unpacked(published, tmp_path):
    whole = published.packed["cifar10"][ARCHIVE]
    for content in (whole[:-100], tar({**published.raw["cifar10"], "test_batch.bin": b"x"})):
        write(tmp_path, {ARCHIVE: content})
        with pytest.raises(ValueError) as error:
            images.load("cifar10", tmp_path)
        assert_helps(error, "cifar10", tmp_path / ARCHIVE, sha256(whole), sha256(content))


# Downloads: pooch with another network


@pytest.fixture
def network(published, tmp_path, monkeypatch):
    """Addresses asked for so far, answered with the packed files; the cache is ``tmp_path``."""
    asked = []

    def download(url, output_file, pooch):
        asked.append(url)
        [name] = (k for k, v in images.DATASETS.items() if url in str(v.splits))
        with open(output_file, "wb") as file:
            file.write(published.packed[name][url.rpartition("/")[2]])

    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    monkeypatch.setattr(pooch.core, "choose_downloader", lambda url, progressbar: download)
    return asked


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@every_split
@every_set
def test_files_are_downloaded_once(published, network, tmp_path, monkeypatch, name, split):
    monkeypatch.setenv("SINKFLOW_DATA", "")  # as good as unset
    assert_same(images.load(name, split=split), published.arrays[name, split])
    assert_same(images.load(name, split=split), published.arrays[name, split])
    assert network == [package.url for package in images.DATASETS[name].splits[split].packages]
    # What was downloaded can be named as a folder of files.
    assert_same(images.load(name, tmp_path / "sinkflow", split), published.arrays[name, split])


def test_mnist_and_fashion_do_not_share_files_in_the_cache(published, network):
    for name in ("mnist", "fashion", "mnist"):
        assert_same(images.load(name), published.arrays[name, "train"])
    assert len(network) == len(set(network)) == 4


def test_a_damaged_file_in_the_cache_is_downloaded_again(published, network, tmp_path):
    images.load("cifar10")
    [path] = files_below(tmp_path)
    path.write_bytes(b"x")
    assert_same(images.load("cifar10"), published.arrays["cifar10", "train"])
    assert len(network) == 2


@pytest.mark.parametrize("failure", ["no network", "cut off", "another file"])
def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(
    published, network, tmp_path, monkeypatch, failure
):
    def download(url, output_file, pooch):
        with open(output_file, "wb") as file:
            file.write(published.packed["cifar10"][ARCHIVE][: -1 if failure == "cut off" else 9])
        if failure == "no network":
            raise ConnectionError("name resolution failed")

    with monkeypatch.context() as broken:
        broken.setattr(pooch.core, "choose_downloader", lambda url, progressbar: download)
        with pytest.raises(RuntimeError) as error:
            images.load("cifar10")
    cause = "name resolution failed" if failure == "no network" else "hash"
    assert_helps(error, "cifar10", "could not be downloaded", cause)
    assert not files_below(tmp_path)
    assert_same(images.load("cifar10"), published.arrays["cifar10", "train"])


# Pixels


def test_scale_maps_256_levels_evenly_onto_minus_one_to_one():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = images.scale(levels)
    assert x.shape == levels.shape and x.dtype == jnp.float32
    assert x.min() == -1 and x.max() == 1
    np.testing.assert_allclose(np.ravel(x), np.linspace(-1, 1, 256), atol=1e-7)
    np.testing.assert_array_equal(np.ravel(x), -np.ravel(x)[::-1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_unscale_gives_every_level_back(dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    back = images.unscale(images.scale(levels).astype(dtype))
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, levels)


def test_unscale_rounds_and_clips():
    step = 2 / 255
    x = jnp.array([-7.0, -1 - step, -1 + 0.4 * step, -1 + 0.6 * step, 1 - 0.4 * step, 1.5, jnp.inf])
    assert images.unscale(x).tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_scale_refuses_what_may_be_scaled_already(unchecked_shapes):
    with pytest.raises(ValueError, match="pixels are float32; scale takes uint8"):
        images.scale(jnp.zeros((2, 28, 28, 1)))


def test_flip_mirrors_about_half_of_the_images_and_no_other_axis(key):
    x = jax.random.normal(key, (1000, 2, 3, 3))
    flipped = np.asarray(images.flip(jax.random.key(1), x))
    kept = np.all(flipped == x, axis=(1, 2, 3))
    mirrored = np.all(flipped == x[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(kept ^ mirrored)
    assert abs(mirrored.mean() - 0.5) < 5 * np.sqrt(0.25 / 1000)


def test_flip_with_one_key_twice_is_no_flip_and_keys_differ(key):
    x = jax.random.randint(key, (64, 4, 4, 3), 0, 256).astype(jnp.uint8)
    once = images.flip(key, x)
    assert once.dtype == jnp.uint8
    np.testing.assert_array_equal(images.flip(key, once), x)
    assert np.any(once != images.flip(jax.random.key(1), x))


def test_flip_draws_for_every_image_of_every_batch(key):
    x = jnp.tile(jnp.arange(2.0)[None, :, None], (8, 32, 1, 1, 1))
    first = np.asarray(images.flip(key, x))[..., 0, 0, 0]
    assert first.shape == (8, 32)
    assert np.all((first.mean(axis=0) > 0) & (first.mean(axis=0) < 1))
    assert np.all((first.mean(axis=1) > 0) & (first.mean(axis=1) < 1))


def test_a_train_step_can_prepare_its_batch(key):
    @jax.jit
    def step(key, pixels):
        return images.unscale(images.flip(key, images.scale(pixels)))

    pixels = jax.random.randint(key, (8, 28, 28, 1), 0, 256).astype(jnp.uint8)
    np.testing.assert_array_equal(step(key, pixels), images.flip(key, pixels))


def test_new_values_do_not_recompile(key):
    pixels = jnp.zeros((2, 4, 4, 3), jnp.uint8)
    functions = [images.scale, images.unscale, images.flip]

    def prepare(key, pixels):
        images.unscale(images.flip(key, images.scale(pixels)))

    prepare(key, pixels)
    compiled = [function._cache_size() for function in functions]
    prepare(jax.random.key(1), pixels + 1)
    assert compiled == [function._cache_size() for function in functions]
