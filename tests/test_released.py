"""Encoders to pass on, and the one that comes with the repository."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from simsiam import released
from simsiam.errors import UserError
from simsiam.features import extract
from simsiam.files import read_json, write_bytes
from simsiam.images import ImageSet
from simsiam.metrics import knn_scores, nearest, top_k
from simsiam.networks import Encoder
from simsiam.settings import EncoderSettings
from tests.some import but

OURS = Path(__file__).parents[1] / "released"


def heads(settings: EncoderSettings) -> dict[str, dict[str, Tensor]]:
    dims = {"backbone": 8 * settings.width, "latent": settings.latent_dim}
    return {space: {"weight": torch.randn(10, d), "bias": torch.randn(10)} for space, d in dims.items()}


@pytest.mark.parametrize("stem", ["imagenet", "cifar", "strided"])
def test_what_is_written_is_read(tiny: EncoderSettings, images: Tensor, tmp_path: Path, stem: str) -> None:
    encoder = Encoder(but(tiny, stem=stem)).eval()
    linear = heads(tiny)
    released.write(tmp_path, encoder, linear, {"images": {"name": "some"}})
    found = released.read(tmp_path)
    assert found.encoder.settings == encoder.settings and found.card["images"] == {"name": "some"}
    for mine, theirs in zip(extract(encoder, images[:8]), extract(found.encoder, images[:8]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.02, atol=0.02)  # half precision
    for space, head in linear.items():
        assert torch.equal(found.heads[space]["bias"], head["bias"])
        assert torch.equal(found.heads[space]["weight"], head["weight"])
    for name, value in encoder.state_dict().items():
        assert torch.equal(found.encoder.state_dict()[name], value.half().float() if value.ndim > 1 else value)


def test_torchvision_computes_the_same_features(tiny: EncoderSettings, images: Tensor, tmp_path: Path) -> None:
    encoder = Encoder(but(tiny, stem="cifar", depth=18, width=64)).eval()
    released.write(tmp_path, encoder, heads(encoder.settings), {})
    assert torch.allclose(
        of_torchvision(tmp_path, images[:4], tiny.mean, tiny.std),
        released.read(tmp_path).encoder.backbone(images[:4] / 255),
        rtol=1e-4,
        atol=1e-5,
    )


def of_torchvision(folder: Path, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """What released/README.md says to do elsewhere."""
    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = network.fc = nn.Identity()
    network.load_state_dict(load_file(folder / "backbone.safetensors"))
    normalised = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        return network.eval()(normalised)


def test_other_names_are_refused(tiny: EncoderSettings, tmp_path: Path) -> None:
    released.write(tmp_path, Encoder(tiny), heads(tiny), {})
    save_file({"other": torch.zeros(2)}, tmp_path / "linear.safetensors")
    with pytest.raises(UserError, match="does not hold an encoder"):
        released.read(tmp_path)


@pytest.mark.parametrize("name", ["card.json", "backbone.safetensors", "projector.safetensors", "linear.safetensors"])
@pytest.mark.parametrize("fault", ["missing", "short", "other", "of another release"])
def test_a_damaged_folder_is_refused(tiny: EncoderSettings, tmp_path: Path, name: str, fault: str) -> None:
    released.write(tmp_path, Encoder(tiny), heads(tiny), {})
    path = tmp_path / name
    if fault == "missing":
        path.unlink()
    elif fault == "of another release":
        released.write(tmp_path / "other", Encoder(but(tiny, seed=tiny.seed + 1)), heads(tiny), {})
        (tmp_path / "other" / name).replace(path)
    else:
        path.write_bytes(path.read_bytes()[:50] if fault == "short" else b"something else")
    with pytest.raises(UserError, match="get it anew"):
        released.read(tmp_path)


def test_a_full_disk_leaves_the_old_folder_whole(
    tiny: EncoderSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released.write(tmp_path, Encoder(tiny), heads(tiny), {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written: list[str] = []

    def full(path: Path, content: bytes) -> None:
        written.append(path.name)
        if len(written) == 3:
            raise UserError("the disk is full")
        write_bytes(path, content)

    monkeypatch.setattr(released, "write_bytes", full)
    with pytest.raises(UserError, match="full"):
        released.write(tmp_path, Encoder(but(tiny, seed=tiny.seed + 1)), heads(tiny), {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_released_encoder_is_what_its_card_says(cifar: ImageSet, images: Tensor) -> None:
    """Its kNN on 500 images, and with what torchvision makes of the file."""
    found = released.read(OURS)
    test = torch.from_numpy(cifar.x_test).permute(0, 3, 1, 2).contiguous()
    bank, queries = (extract(found.encoder, part)[0] for part in (images, test))
    similarities, indices = nearest(bank, queries, 20)
    top1 = top_k(knn_scores(similarities, cifar.y_train[indices], 10, temperature=0.1), cifar.y_test, 1)
    assert top1 == 0.85  # seen when it was released; scikit-learn's unweighted vote has 0.82
    elsewhere = of_torchvision(OURS, test[:20], found.encoder.settings.mean, found.encoder.settings.std).numpy()
    np.testing.assert_allclose(elsewhere, queries[:20], rtol=1e-3, atol=1e-4)


def test_the_readme_of_the_released_encoder_says_what_its_card_has() -> None:
    card, text = read_json(OURS / "card.json"), (OURS / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[2:4]] for line in text.splitlines() if "%" in line and "|" in line]
    few = [card["few_labels"]["1%"][space] for space in ("backbone", "random_backbone")]
    expected = [
        [f"{100 * card[measure][f'{prefix}{space}']:.1f} %" for prefix in ("", "random_")]
        for measure in ("linear_top1", "knn_top1")
        for space in ("backbone", "latent")
    ]
    assert rows == [*expected, [f"{100 * each['top1']:.1f} ± {100 * each['sd']:.1f} %" for each in few]]
    run = card["pretrain"]
    for number in (f"epochs={run['epochs']}", f"{run['seconds']:.0f} s", f"{run['images_per_second']:,.0f} pairs"):
        assert number in text
    assert str(card["encoder"]["mean"]) in text and str(card["encoder"]["std"]) in text
