# SPDX-License-Identifier: Apache-2.0
"""Parameters from BART and from an ImageNet DaViT compute what their sources compute.

The ImageNet DaViT here is written from its paper's equations, apart from the package and from timm;
timm's own module is compared too where it is installed.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import BartConfig, BartForConditionalGeneration

from florence2_jax.conversion.initial import initialize
from florence2_jax.conversion.translate import flatten
from florence2_jax.models.config import Florence2Config
from florence2_jax.text.tokenizer import ADDED_TOKENS
from florence2_jax.training.state import InitConfig, merge, model_graph
from florence2_jax.typing import UserError

DIMS, HEADS, DEPTHS, WINDOW = (8, 16, 24, 32), (1, 2, 3, 4), (1, 1, 2, 1), 3
BART_ROWS, BART_POSITIONS = 107, 16
WIDTH, HEIGHT = 96, 64  # 24 x 16 tokens in the first stage: 3 do not tile the last ones.


def make_config(*, positions: int = 40, **changes) -> Florence2Config:
    text = dict(d_model=32, encoder_layers=2, decoder_layers=1, num_heads=2, mlp_dim=48)
    text |= dict(vocab_size=BART_ROWS + len(ADDED_TOKENS) + 1, max_positions=positions)
    davit = dict(dims=DIMS, num_heads=HEADS, depths=DEPTHS, window_size=WINDOW)
    sizes = dict(davit=davit, text=text, image_size=(WIDTH, HEIGHT), dtype="float32") | changes
    return Florence2Config.create("base", **sizes)


def model_of(config, params):
    return merge(model_graph(config), params)


# BART


@pytest.fixture(scope="module")
def bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    sizes = dict(d_model=32, encoder_layers=2, decoder_layers=1, vocab_size=BART_ROWS)
    sizes |= dict(encoder_attention_heads=2, decoder_attention_heads=2)
    sizes |= dict(encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=BART_POSITIONS)
    model = BartForConditionalGeneration(BartConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model


@pytest.fixture
def bart_folder(bart, tmp_path) -> Path:
    bart.save_pretrained(tmp_path / "bart")
    return tmp_path / "bart"


def rewrite(folder: Path, change) -> None:
    """Saves the folder's state dict anew, changed, as the pickle that older folders have."""
    state = dict(torch_state(folder))
    change(state)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


def torch_state(folder: Path) -> dict[str, torch.Tensor]:
    model = BartForConditionalGeneration.from_pretrained(folder)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def bare(state: dict) -> None:
    """The names of a bare BartModel, as facebook/bart-base has them."""
    for name in list(state):
        tensor = state.pop(name)
        if name.startswith("model."):
            state[name.removeprefix("model.")] = tensor


@pytest.mark.parametrize("layout", ["safetensors", "bare pickle"])
@pytest.mark.parametrize("positions", [40, 14])  # BART has 16. Six of ours are the image's.
def test_text_is_computed_as_bart_does(bart, bart_folder, layout, positions):
    if layout == "bare pickle":
        rewrite(bart_folder, bare)
    config = make_config(positions=positions)
    model = model_of(config, initialize(config, bart=bart_folder, seed=0))
    rng = np.random.default_rng(0)
    prompt_ids = rng.integers(4, BART_ROWS, size=(2, 12))
    prompt_ids[1, 9:] = 1
    decoder_ids = rng.integers(4, BART_ROWS, size=(2, 7))
    states, mask = model.text.encode(jnp.zeros((2, 0, 32)), jnp.asarray(prompt_ids, jnp.int32))
    logits = model.text.decode(jnp.asarray(decoder_ids, jnp.int32), states, mask)
    with torch.no_grad():
        expected = bart(
            input_ids=torch.tensor(prompt_ids),
            attention_mask=torch.tensor(prompt_ids != 1).long(),
            decoder_input_ids=torch.tensor(decoder_ids),
        ).logits
    assert np.std(expected.numpy()) > 0.2
    # float32, eight attentions and MLPs of unit scale.
    np.testing.assert_allclose(logits[..., :BART_ROWS], expected, rtol=0, atol=2e-5)


def test_new_rows_lie_about_the_mean_and_positions_repeat(bart, bart_folder):
    config = make_config()
    params = initialize(config, bart=bart_folder, seed=0)
    known = bart.model.shared.weight.detach().numpy()
    table = params["text"]["shared"]["embedding"]
    np.testing.assert_array_equal(table[:BART_ROWS], known)
    new = table[BART_ROWS : config.text.vocab_size] - known.mean(axis=0)
    assert new.std() == pytest.approx(0.02, rel=0.05)
    assert len(np.unique(new, axis=0)) == len(new), "every new token is another"
    assert np.abs(new.mean(axis=0)).max() < 0.02 / len(new) ** 0.5 * 5  # Five deviations.
    assert not table[config.text.vocab_size :].any()

    theirs = bart.model.encoder.embed_positions.weight.detach().numpy()
    ours = params["text"]["encoder"]["positions"]["embedding"]
    np.testing.assert_array_equal(ours[: BART_POSITIONS + 2], theirs)
    np.testing.assert_array_equal(ours[2 + BART_POSITIONS : 2 + 2 * BART_POSITIONS], theirs[2:])


def test_the_rest_is_the_fresh_run_of_the_seed(bart_folder):
    config = make_config()
    fresh = flatten(initialize(config, seed=3))
    ours = flatten(initialize(config, bart=bart_folder, seed=3))
    other = flatten(initialize(config, bart=bart_folder, seed=4))
    for path, value in ours.items():
        is_fresh = path.startswith(("image/", "projector/"))
        assert np.array_equal(value, fresh[path]) == (is_fresh or not value.any()), path
    assert np.std(ours["projector/kernel"]) == pytest.approx(0.02, rel=0.1)
    assert not np.array_equal(ours["projector/kernel"], other["projector/kernel"])
    scanned = make_config(scan=True)
    params = initialize(scanned, bart=bart_folder, seed=3)
    np.testing.assert_array_equal(
        params["text"]["encoder"]["layers"]["ffn"]["fc1"]["kernel"][1],
        ours["text/encoder/layers/1/ffn/fc1/kernel"],
    )


def test_locations_in_order_need_the_tokenizer():
    with pytest.raises(ValueError, match="needs the tokenizer"):
        initialize(make_config(), seed=0, init=InitConfig(locations="ordinal"))


def drop(name):
    return lambda state: state.pop(name)


def put(name, value):
    return lambda state: state.update({name: value})


FC1 = "model.encoder.layers.1.fc1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(FC1), r"encoder\.layers\.1\.fc1\.weight: missing"),
        (put("model.extra", torch.zeros(2)), "extra: unknown"),
        (put(FC1, torch.zeros(48, 31)), r"fc1\.weight: is \(48, 31\), expected \(48, 32\)"),
        (put(FC1, torch.full((48, 32), torch.nan)), r"fc1\.weight: holds numbers that are not fin"),
        (put(FC1, torch.zeros(48, 32, dtype=torch.int8)), r"fc1\.weight: is int8"),
        (put("final_logits_bias", torch.ones(1, BART_ROWS)), "final_logits_bias is not zero"),
        (put("lm_head.weight", torch.ones(BART_ROWS, 32)), "lm_head.weight differ from shared"),
        (put("model.encoder.embed_positions.weight", torch.ones(2, 32)), "2 rows, the first 2"),
    ],
)
def test_tensors_that_do_not_fit_are_named(bart_folder, change, message):
    rewrite(bart_folder, change)
    with pytest.raises(UserError, match=message):
        initialize(make_config(), bart=bart_folder, seed=0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "mbart", "model_type is 'mbart', expected 'bart'"),
        ("encoder_attention_heads", 4, "encoder_attention_heads is 4, expected 2"),
        ("decoder_layers", 3, "decoder_layers is 3, expected 1"),
        ("scale_embedding", True, "scale_embedding is True"),
    ],
)
def test_another_architecture_is_refused(bart_folder, key, value, message):
    path = bart_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=message):
        initialize(make_config(), bart=bart_folder, seed=0)


def test_another_vocabulary_is_refused(bart_folder, tokenizer):
    with pytest.raises(UserError, match=r"107 embedding rows.*the run's tokenizer \(\d+ base ids"):
        initialize(make_config(), bart=bart_folder, seed=0, tokenizer=tokenizer)
    config = make_config()
    text = config.to_dict()["text"] | {"vocab_size": BART_ROWS + 1000}
    with pytest.raises(UserError, match=r"107 embedding rows and the 1024 added tokens do not fit"):
        initialize(make_config(text=text), bart=bart_folder, seed=0)


# DaViT of ImageNet


class ChannelAttention(nn.Module):
    """softmax((k c^-0.5)^T v) applied to q, over the c channels of a group."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # B Y X 3 G C
        q, k, v = qkv.flatten(1, 2).unbind(2)
        scores = torch.einsum("bngc,bnge->bgce", k, v) * k.shape[-1] ** -0.5
        out = torch.einsum("bgce,bnge->bngc", scores.softmax(-1), q)
        return self.proj(out.reshape(x.shape))


class WindowAttention(nn.Module):
    """Attention of the tokens of a window to each other; zeros fill up the last windows."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        _, height, width, _ = x.shape
        x = functional.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        out = torch.zeros_like(x)
        for top in range(0, height, WINDOW):
            for left in range(0, width, WINDOW):
                place = (slice(None), slice(top, top + WINDOW), slice(left, left + WINDOW))
                q, k, v = (
                    self.qkv(x[place]).flatten(1, 2).unflatten(-1, (3, self.heads, -1)).unbind(2)
                )
                scores = torch.einsum("bnhc,bmhc->bhnm", q, k) * q.shape[-1] ** -0.5
                y = torch.einsum("bhnm,bmhc->bnhc", scores.softmax(-1), v)
                out[place] = self.proj(y.reshape(x[place].shape))
        return out[:, :height, :width]


class Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class Position(nn.Module):
    """A depthwise 3x3 convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x):
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    def __init__(self, dim: int, attn: nn.Module):
        super().__init__()
        self.cpe = nn.ModuleList([Position(dim), Position(dim)])
        self.norm1, self.attn = nn.LayerNorm(dim), attn
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim)

    def forward(self, x):
        x = x + self.cpe[0](x)
        x = x + self.attn(self.norm1(x))
        x = x + self.cpe[1](x)
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    """7x7 at stride 4 and a norm behind it, or a norm and 2x2 at stride 2."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.is_first = dim == 3
        options = dict(kernel_size=7, stride=4, padding=3) if self.is_first else {}
        self.proj = nn.Conv2d(dim, out_dim, **(options or dict(kernel_size=2, stride=2)))
        self.norm = nn.LayerNorm(out_dim if self.is_first else dim)

    def forward(self, x):
        if not self.is_first:
            return self.proj(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class ImageNetDaViT(nn.Module):
    """Under the authors' names, classifier included."""

    def __init__(self):
        super().__init__()
        sizes = list(zip((3, *DIMS), DIMS, HEADS, DEPTHS, strict=False))
        self.patch_embeds = nn.ModuleList(Patches(before, dim) for before, dim, _, _ in sizes)
        self.main_blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    nn.Sequential(
                        Block(dim, WindowAttention(dim, heads)),
                        Block(dim, ChannelAttention(dim, heads)),
                    )
                    for _ in range(depth)
                )
            )
            for _, dim, heads, depth in sizes
        )
        self.norms, self.head = nn.LayerNorm(DIMS[-1]), nn.Linear(DIMS[-1], 10)

    def forward(self, x):
        """[B, Y, X, 3] to [B, y, x, D]."""
        for patches, blocks in zip(self.patch_embeds, self.main_blocks, strict=True):
            x = blocks(patches(x))
        return x


def randomize(module: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)


@pytest.fixture(scope="module")
def davit() -> ImageNetDaViT:
    model = ImageNetDaViT().eval()
    randomize(model)
    return model


def timm_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The authors' names as timm's ImageNet models have them, written as a list of cases."""
    renamed = {}
    for name, tensor in state.items():
        kind, *rest = name.split(".")
        if kind == "patch_embeds":
            stage, layer, leaf = rest
            layer = "conv" if layer == "proj" else layer
            before = "stem" if stage == "0" else f"stages.{stage}.downsample"
            renamed[f"{before}.{layer}.{leaf}"] = tensor
        elif kind == "main_blocks":
            stage, block, half, layer, *tail = rest
            if layer == "cpe":
                layer, tail = f"cpe{int(tail[0]) + 1}", tail[1:]
            renamed[".".join(["stages", stage, "blocks", block, half, layer, *tail])] = tensor
        else:
            renamed[{"norms": "head.norm.", "head": "head.fc."}[kind] + rest[0]] = tensor
    return renamed


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    state = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    if path.suffix == ".pth":
        torch.save(state, path)
        return path
    path.mkdir()
    save_file(state, path / "model.safetensors")
    return path


def features(config, params, image: np.ndarray) -> np.ndarray:
    return np.asarray(model_of(config, params).image(jnp.asarray(image)))


def random_image(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("layout", ["authors", "timm"])
def test_image_is_encoded_as_by_the_imagenet_davit(davit, layout, tmp_path):
    state = davit.state_dict()
    source = (
        save(timm_names(state), tmp_path / "timm")
        if layout == "timm"
        else save(state, tmp_path / "davit.pth")
    )
    config = make_config()
    params = initialize(config, davit=source, seed=0)
    with torch.no_grad():
        expected = davit(torch.tensor(random_image())).numpy()
    scale = expected.std()
    ours = features(config, params, random_image())
    # float32, ten blocks; relative to the scale, which no norm keeps.
    np.testing.assert_allclose(ours / scale, expected / scale, rtol=0, atol=2e-5)

    # The fold is for one resolution, and the test would see another.
    small = random_image(32, 32)
    with torch.no_grad():
        expected = davit(torch.tensor(small)).numpy()
    assert np.abs(features(config, params, small) - expected).max() > 1e-3 * scale
    again = make_config(image_size=(32, 32))
    params = initialize(again, davit=source, seed=0)
    np.testing.assert_allclose(
        features(again, params, small) / scale, expected / scale, rtol=0, atol=2e-5
    )


def test_florences_own_tower_of_timm_is_renamed_only(davit, tmp_path):
    state = {}
    for name, tensor in timm_names(davit.state_dict()).items():
        if not name.startswith("head."):
            parts = name.split(".")
            if len(parts) > 5:
                parts[4] = {"0": "spatial_block", "1": "channel_block"}[parts[4]]
            if tensor.shape[-2:] == (2, 2):
                tensor = torch.randn(*tensor.shape[:2], 3, 3)
            state[".".join(parts)] = tensor
    params = initialize(make_config(), davit=save(state, tmp_path / "timm"), seed=0)
    image = params["image"]["stages"]
    block = image[2]["blocks"][1]["channel"]
    theirs = "stages.2.blocks.1.channel_block"
    np.testing.assert_array_equal(
        block["attn"]["qkv"]["kernel"], state[f"{theirs}.attn.qkv.weight"].T
    )
    np.testing.assert_array_equal(
        block["conv2"]["kernel"][..., 0, :],
        state[f"{theirs}.cpe2.proj.weight"][:, 0].permute(1, 2, 0),
    )
    np.testing.assert_array_equal(
        image[1]["patch_embed"]["conv"]["kernel"],
        state["stages.1.downsample.conv.weight"].permute(2, 3, 1, 0),
    )


def test_timms_own_module_is_matched(tmp_path):
    davit = pytest.importorskip("timm.models.davit")
    model = davit.DaVit(depths=DEPTHS, embed_dims=DIMS, num_heads=HEADS, window_size=WINDOW).eval()
    randomize(model)
    config = make_config()
    params = initialize(config, davit=save(model.state_dict(), tmp_path / "timm"), seed=0)
    with torch.no_grad():
        expected = model.forward_features(torch.tensor(random_image()).permute(0, 3, 1, 2))
    expected = expected.permute(0, 2, 3, 1).numpy()
    ours, scale = features(config, params, random_image()), expected.std()
    np.testing.assert_allclose(ours / scale, expected / scale, rtol=0, atol=2e-5)


QKV = "main_blocks.2.1.1.attn.qkv.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(QKV), r"main_blocks\.2\.1\.1\.attn\.qkv\.bias: missing"),
        (put(QKV, torch.zeros(5)), r"attn\.qkv\.bias: is \(5,\), expected \(72,\)"),
        (put("main_blocks.3.1.0.norm1.bias", torch.zeros(32)), r"main_blocks\.3\.1.*: unknown"),
        (put("patch_embeds.1.proj.weight", torch.zeros(16, 8, 4, 4)), "4x4 does not fit into 3x3"),
        (dict.clear, "holds no DaViT"),
    ],
)
def test_a_davit_that_does_not_fit_is_named(davit, change, message, tmp_path):
    state = dict(davit.state_dict())
    change(state)
    with pytest.raises(UserError, match=message):
        initialize(make_config(), davit=save(state, tmp_path / "davit.pth"), seed=0)


def test_both_at_once_is_each(davit, bart_folder, tmp_path):
    config = make_config()
    source = save(davit.state_dict(), tmp_path / "davit.pth")
    both = flatten(initialize(config, bart=bart_folder, davit=source, seed=0))
    image = flatten(initialize(config, davit=source, seed=0))
    text = flatten(initialize(config, bart=bart_folder, seed=0))
    for path, value in both.items():
        np.testing.assert_array_equal(value, (text if path.startswith("text/") else image)[path])
