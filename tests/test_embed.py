"""Features of images: shapes and types, a classifier that depends on data and seed alone, adapters to published networks."""

import hashlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from selfloop.embed import (
    ClassifierEmbedding,
    Clip,
    Dinov2,
    Embedding,
    Features,
    Inception,
    PixelEmbedding,
    classifier,
    published,
)
from selfloop.images import Images
from selfloop.measure import Measure, Rows
from selfloop.work import FolderWork

DIGITS = Images().replicated(1, np.random.default_rng(0))
BRIEF = ClassifierEmbedding(steps=4)


def noise(n: int, *event: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(n, *event), dtype=np.uint8)


def images_of(points: np.ndarray, labels: Any = None) -> Measure:
    return Measure.uniform(points, labels, batch=0)


# What all of them share


@pytest.mark.parametrize("embedding", [PixelEmbedding(), BRIEF], ids=["pixels", "classifier"])
def test_features_are_the_same_of_an_array_a_memory_map_and_rows_in_batches_of_any_size(embedding: Any, tmp_path: Path) -> None:
    features = embedding.fitted(DIGITS.train())
    assert isinstance(embedding, Embedding)
    assert isinstance(features, Features)
    points = np.array(DIGITS.held_out().points[:300])
    np.save(tmp_path / "points.npy", points)
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    whole = features(points)
    assert (whole.shape[0], whole.dtype) == (300, np.float32)
    np.testing.assert_array_equal(features(mapped), whole)
    np.testing.assert_array_equal(
        features(Rows((mapped,), np.arange(300)[::-1])), whole[::-1] if features.name == "pixels" else features(points[::-1])
    )
    np.testing.assert_allclose(np.concatenate([features(points[:7]), features(points[7:])]), whole, rtol=1e-4, atol=1e-5)


def test_pixels_are_model_space_and_latents_stay_as_they_are() -> None:
    features = PixelEmbedding().fitted(DIGITS.train())
    points = np.array([[[[0, 255], [51, 102]]]], dtype=np.uint8)
    np.testing.assert_allclose(features(points), [[-1, 1, -0.6, -0.2]], rtol=1e-6)
    latents = np.random.default_rng(0).standard_normal((5, 4, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(features(latents), latents.reshape(5, 16))


# The classifier


@pytest.mark.slow
def test_a_classifier_with_its_own_settings_names_97_of_100_digits_it_has_not_seen() -> None:
    """449 digits are held out: 97 % is 435 of them; 6 seeds gave from 98.2 to 99.1 %."""
    features = ClassifierEmbedding().fitted(DIGITS.train())
    assert features.accuracy(DIGITS.held_out()) >= 0.97


def test_a_moment_of_training_names_nine_digits_in_ten() -> None:
    features = ClassifierEmbedding(steps=60).fitted(DIGITS.train())
    held = DIGITS.held_out()
    named = features.classify(held.points)
    assert (named.dtype, named.shape) == (np.int64, (held.n,))
    assert features.accuracy(held) == (named == held.labels).mean() > 0.9


def test_a_classifier_depends_on_data_and_seed_alone_and_leaves_threads_and_global_numbers_as_they_are() -> None:
    points = DIGITS.held_out().points[:20]
    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = BRIEF.fitted(DIGITS.train())(points)
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_num_threads(2)
    try:
        again = BRIEF.fitted(DIGITS.train())(points)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(again, first, rtol=1e-5, atol=1e-6)
    other = ClassifierEmbedding(steps=4, seed=1).fitted(DIGITS.train())(points)
    assert not np.allclose(other, first, rtol=1e-2)


def test_a_classifier_keeps_itself_and_one_for_other_data_is_trained_anew(tmp_path: Path) -> None:
    points, work = DIGITS.held_out().points[:20], FolderWork(tmp_path)
    first = BRIEF.fitted(DIGITS.train(), work)
    kept = ClassifierEmbedding(steps=1).fitted(DIGITS.train(), work)
    np.testing.assert_array_equal(kept(points), first(points))
    assert {name: values.dtype for name, values in work.load().items()} == dict.fromkeys(work.load(), np.dtype("float32"))  # type: ignore[union-attr, arg-type]
    few = DIGITS.train().subset(np.flatnonzero(DIGITS.train().labels < 3))  # type: ignore[operator]
    assert set(BRIEF.fitted(few, work).classify(points)) <= {0, 1, 2}


def test_rows_of_no_weight_teach_nothing() -> None:
    train = DIGITS.train()
    assert train.labels is not None
    wrong = Measure(train.points, train.weights, np.where(train.labels < 5, train.labels, 0))
    weighed = wrong.reweighted((train.labels < 5).astype(float))
    spoilt = Measure(train.points, weighed.weights, np.where(train.labels < 5, train.labels, 4))
    points = DIGITS.held_out().points[:20]
    np.testing.assert_array_equal(BRIEF.fitted(weighed)(points), BRIEF.fitted(spoilt)(points))


@pytest.mark.parametrize(
    ("event", "least", "most"),
    [
        ((1, 8, 8), 50_000, 150_000),
        ((1, 28, 28), 50_000, 150_000),
        ((3, 32, 32), 50_000, 150_000),
        ((3, 256, 256), 50_000, 150_000),
        ((4, 5, 9), 40_000, 150_000),
    ],
)
def test_a_classifier_is_small_whatever_the_size_of_the_images(event: tuple[int, ...], least: int, most: int) -> None:
    net = classifier._network(event, 10, 64, torch.Generator().manual_seed(0))
    assert least < sum(parameter.numel() for parameter in net.parameters()) < most
    assert net[:-1](torch.zeros(2, *event)).shape == (2, 64)
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


def test_augmentation_moves_an_image_by_a_pixel_at_most_and_adds_noise_of_a_tenth() -> None:
    """Standard error of the noise over 400 images of 64 pixels: .1 / (2 25600)^(1/2); 4 of them allowed (false alarms 6e-5)."""
    spot = np.full((400, 1, 8, 8), -1.0, dtype=np.float32)
    spot[:, 0, 4, 4] = 1
    moved = classifier._varied(spot, np.random.default_rng(0))
    place = np.stack(np.unravel_index(moved.reshape(400, 64).argmax(axis=1), (8, 8)))
    assert {tuple(shift) for shift in (place - 4).T} == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)}
    rest = moved[moved < 0] + 1
    assert abs(rest.std() - 0.1) < 4 * 0.1 / np.sqrt(2 * rest.size)


@pytest.mark.parametrize(
    ("real", "message"),
    [
        (images_of(noise(5, 1, 8, 8)), "needs labelled images, and these have no labels"),
        (images_of(noise(5, 1, 8, 8), np.zeros(5, dtype=int)), "of two classes or more, got 0"),
        (images_of(noise(5, 1, 8, 8), np.arange(5) - 1), "labels from 0 up, of two classes or more, got -1, 0"),
        (images_of(noise(5, 64), np.arange(5)), r"images \(n, C, H, W\), got \(5, 64\)"),
    ],
)
def test_data_that_a_classifier_cannot_learn_are_refused(real: Measure, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BRIEF.fitted(real)


def test_a_width_that_normalisation_cannot_split_and_a_gpu_that_is_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16, got 40"):
        ClassifierEmbedding(width=40)
    if not torch.cuda.is_available():
        for embedding in (ClassifierEmbedding(device="cuda"), Dinov2(device="cuda")):
            with pytest.raises(RuntimeError, match="torch sees no GPU; set device: cpu, or auto"):
                embedding.fitted(DIGITS.train())


# Inception


class Extractor(torch.nn.Module):
    """In the place of torch-fidelity's: mean, least and largest value of each channel, and as many zeros as are missing."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None) -> None:
        super().__init__()
        assert (features_list, Path(str(feature_extractor_weights_path)).exists()) == (["2048"], True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        flat = x.flatten(2).float()
        found = torch.cat([flat.mean(dim=2), flat.amin(dim=2), flat.amax(dim=2)], dim=1)
        return (torch.nn.functional.pad(found, (0, 2048 - 9)),)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """torch-fidelity without its network, and weights of the right hash; the path of these."""
    module: Any = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.URL_INCEPTION_V3 = "https://example.org/inception.pth"
    module.FeatureExtractorInceptionV3 = Extractor
    package: Any = ModuleType("torch_fidelity")
    package.feature_extractor_inceptionv3 = module
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    weights = tmp_path / "inception.pth"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(published, "INCEPTION_SHA256", hashlib.sha256(b"weights").hexdigest())
    return weights


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_sees_bytes_in_three_channels_batch_by_batch(fidelity: Path, channels: int) -> None:
    features = Inception(weights=str(fidelity), batch=4).fitted(DIGITS.train())
    points = noise(10, channels, 6, 6)
    found = features(points)
    assert (found.shape, found.dtype, features.name) == ((10, 2048), np.float32, "inception")
    flat = np.broadcast_to(points, (10, 3, 6, 6)).reshape(10, 3, 36)
    expected = np.concatenate([flat.mean(axis=2), flat.min(axis=2), flat.max(axis=2)], axis=1)
    np.testing.assert_allclose(found[:, :9], expected, rtol=1e-6)


def test_weights_of_inception_come_from_the_download_of_the_library_once(
    fidelity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(fidelity.parent / "hub"))
    asked = []

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert Inception().fitted(DIGITS.train())(noise(2, 3, 4, 4)).shape == (2, 2048)
    assert asked == [("https://example.org/inception.pth", published.INCEPTION_SHA256)]


def test_weights_of_inception_that_are_absent_or_others_are_refused(fidelity: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights of Inception-v3 at .*absent\.pth"):
        Inception(weights=str(fidelity.parent / "absent.pth")).fitted(DIGITS.train())
    fidelity.write_bytes(b"others")
    with pytest.raises(
        ValueError, match=f"is not the Inception-v3 of 2015: its SHA-256 is {hashlib.sha256(b'others').hexdigest()}"
    ):
        Inception(weights=str(fidelity)).fitted(DIGITS.train())
    with pytest.raises(ValueError, match="environment variable NO_SUCH_PLACE, which is not set"):
        Inception(weights="$NO_SUCH_PLACE/inception.pth").fitted(DIGITS.train())


@pytest.mark.parametrize(
    ("library", "embedding"), [("torch_fidelity", Inception()), ("transformers", Dinov2()), ("diffusers", Dinov2(decode="vae"))]
)
def test_a_library_that_is_missing_is_named_with_the_remedy(
    library: str, embedding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=f"run: pip install {library.replace('_', '-')}"):
        embedding.fitted(DIGITS.train())


def test_latents_that_nobody_decodes_and_four_channels_are_refused(fidelity: Path) -> None:
    features = Inception(weights=str(fidelity)).fitted(DIGITS.train())
    for points in (np.zeros((2, 4, 8, 8), dtype=np.float32), noise(2, 4, 8, 8)):
        with pytest.raises(
            ValueError, match=r"looks at uint8 images .* got torch\.(float32|uint8) \(2, 4, 8, 8\); for latents set"
        ):
            features(points)


def test_too_large_a_batch_says_which_to_try(fidelity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = Inception(weights=str(fidelity), batch=8).fitted(DIGITS.train())

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(Extractor, "forward", full)
    with pytest.raises(MemoryError, match=r"8 images at a time do not fit on the device; set features.batch to 4"):
        features(noise(20, 3, 4, 4))


# Networks of transformers, and an autoencoder of diffusers


def colours(points: np.ndarray, mean: list[float], std: list[float]) -> torch.Tensor:
    """[0, 1] less mean over std; for images of the size that the network wants."""
    x = torch.from_numpy(points).float() / 255
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Tiny random networks and the folders they were saved to."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    dino = Dinov2Model(Dinov2Config(**tiny, image_size=32, patch_size=8)).train(False)
    clip = CLIPVisionModelWithProjection(
        CLIPVisionConfig(**tiny, intermediate_size=32, projection_dim=12, image_size=32, patch_size=8)
    )
    clip = clip.train(False)
    dino.save_pretrained(folder / "dino")
    clip.save_pretrained(folder / "clip")
    return SimpleNamespace(dino=dino, clip=clip, folder=folder)


def test_dinov2_is_the_class_token_of_images_in_the_colours_of_imagenet(networks: Any) -> None:
    points = noise(5, 3, 32, 32)
    found = Dinov2(path=str(networks.folder / "dino"), size=32, batch=2).fitted(DIGITS.train())(points)
    with torch.inference_mode():
        out = networks.dino(colours(points, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    np.testing.assert_allclose(found, out.last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, out.pooler_output, rtol=1e-4, atol=1e-5)


def test_clip_is_the_projected_embedding_of_images_in_its_own_colours(networks: Any) -> None:
    points = noise(5, 3, 32, 32)
    found = Clip(path=str(networks.folder / "clip"), size=32, batch=2).fitted(DIGITS.train())(points)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    with torch.inference_mode():
        out = networks.clip(colours(points, mean, std))
    np.testing.assert_allclose(found, out.image_embeds, rtol=1e-4, atol=1e-5)


def test_other_sizes_are_resized_as_pillow_does_and_grey_is_repeated(networks: Any) -> None:
    """Pillow's bicubic filter on bytes rounds twice: within 2 levels of 255."""
    from PIL import Image

    points = np.kron(noise(3, 1, 3, 3), np.ones((1, 1, 4, 4))).astype(np.uint8)
    resized = published._resized(torch.from_numpy(points).expand(-1, 3, -1, -1), 32, ((0.0,) * 3, (1.0,) * 3))
    pillow = np.stack([np.asarray(Image.fromarray(image[0]).resize((32, 32), Image.Resampling.BICUBIC)) for image in points])
    assert np.abs(255 * resized.numpy() - pillow[:, None]).max() <= 2
    features = Dinov2(path=str(networks.folder / "dino"), size=32).fitted(DIGITS.train())
    np.testing.assert_allclose(features(points), features(np.repeat(points, 3, axis=1)), rtol=1e-4, atol=1e-5)


def test_weights_that_can_run_code_are_refused(networks: Any, tmp_path: Path) -> None:
    networks.dino.config.save_pretrained(tmp_path)
    torch.save(networks.dino.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"other weights \(.bin, .pt\) can run code when they are read, and are refused"):
        Dinov2(path=str(tmp_path)).fitted(DIGITS.train())


@pytest.mark.parametrize("moments", [{}, {"latents_mean": [0.1, 0.2, -0.1, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}])
def test_latents_are_decoded_at_the_scale_of_their_autoencoder(networks: Any, moments: dict[str, Any], tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, scaling_factor=0.5, **moments).train(
        False
    )
    vae.save_pretrained(tmp_path / "vae")
    features = Dinov2(path=str(networks.folder / "dino"), size=32, decode=str(tmp_path / "vae")).fitted(DIGITS.train())
    latents = np.random.default_rng(0).standard_normal((3, 4, 16, 16)).astype(np.float32)
    z = torch.from_numpy(latents) / 0.5
    if moments:
        mean, std = (torch.tensor(moments[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
        z = z * std + mean
    with torch.inference_mode():
        decoded = np.clip(np.rint((vae.decode(z).sample.numpy() + 1) * 127.5), 0, 255).astype(np.uint8)
    plain = Dinov2(path=str(networks.folder / "dino"), size=32).fitted(DIGITS.train())
    np.testing.assert_allclose(features(latents), plain(decoded), rtol=1e-3, atol=1e-3)
