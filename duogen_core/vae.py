"""One picture <-> one latent frame, with the VAE of Wan 2.1 or of Wan 2.2 TI2V-5B (diffusers' `AutoencoderKLWan`).

In:  pictures, uint8 [H, W, 3] or float [B, 3, H, W] in -1..1, H and W multiples of 16, or of 32 with Wan 2.2's VAE
     (`fit_size`, `PictureVae.size_step`).
Out: latents [B, 16, H/8, W/8], of Wan 2.2 [B, 48, H/16, W/16], normalised with the config's means and deviations (mode,
     not a sample), and back.

A picture is a video of one frame. For one frame a causal 3D convolution only ever multiplies its last temporal slice
with something other than zero padding, so `encode_frame` and `decode_frame` run the same weights as 2D convolutions:
the same numbers for a fraction of the work, differentiable, for training and inference alike. The temporal
convolutions of the resampling layers are not reached by a first frame at all. Wan 2.2's has patches of 2x2 pixels in
front, and around its blocks shortcuts that pad a first frame with one of zeros in front of it.

`to_single_file` writes the key names of the original Wan release, which ComfyUI's stock VAELoader reads
(comfy/sd.py takes the width from `decoder.head.0.gamma`, so any `base_dim` loads there; it expects
dim_mult 1-2-4-4, two residual blocks, 16 channels, and normalises with the fixed Wan 2.1 means and deviations).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from duogen_core.errors import DuoGenError
from duogen_core.files import read_json
from duogen_core.weights.headers import Entry, check_sizes, check_tensors
from duogen_core.weights.module import FLOATS, build_empty, check_module, fill_module
from duogen_core.weights.reading import WeightFiles, folder_weights

SIZE_STEP = 16  # Wan 2.1's latent cell of 8 pixels times the DiT's patch of two; `PictureVae.size_step` of any

# Wan 2.1's latent statistics: ComfyUI has the same numbers as constants (latent_formats.Wan21), so a VAE meant for
# its VAELoader keeps them whatever it was trained on.
WAN21_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN21_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
# Those of Wan 2.2 TI2V-5B, likewise (latent_formats.Wan22).
WAN22_MEAN = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891),
    *(0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723),
    *(-0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
WAN22_STD = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901),
    *(0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944),
    *(0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)


class VaeError(DuoGenError):
    """A picture, latent or VAE file that does not fit."""


# ---------------------------------------------------------------- sizes


def fit_size(width: int, height: int, step: int = SIZE_STEP) -> tuple[int, int]:
    """The nearest (width, height) the VAE and the DiT take: multiples of `step`, at least that."""
    return tuple(max(step, round(side / step) * step) for side in (width, height))


def fit_pixels(pixels: np.ndarray, step: int = SIZE_STEP) -> np.ndarray:
    """uint8 [H, W, 3], resized to `fit_size` when it has to be."""
    from PIL import Image

    height, width = pixels.shape[:2]
    size = fit_size(width, height, step)
    if size == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def pixels_to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float32 [1, 3, H, W] in -1..1."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise VaeError(f"The VAE takes an image as uint8 [H, W, 3]; it was given {pixels.dtype} {pixels.shape}.")
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]  # a copy: a Picture's array is read-only
    return image.float() / 255.0 * 2.0 - 1.0


def tensor_to_pixels(image: Tensor) -> np.ndarray:
    """float [1, 3, H, W] in -1..1 -> uint8 [H, W, 3], rounded."""
    image = ((image[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return image.permute(1, 2, 0).cpu().numpy()


# ---------------------------------------------------------------- the single-frame path


def _conv(conv: nn.Conv3d, x: Tensor) -> Tensor:
    # The frame is the last one under the kernel; everything before it is zero padding.
    return F.conv2d(x, conv.weight[:, :, -1], conv.bias, padding=conv._padding[2])


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    # F.normalize over channels in float32, as the stock layer; rsqrt is faster than its clamped division.
    wide = x.float()
    wide = wide * (wide.square().sum(1, keepdim=True) + 1e-24).rsqrt()
    return wide.to(x.dtype) * (norm.gamma.view(1, -1, 1, 1) * norm.scale)


def _residual(block: nn.Module, x: Tensor) -> Tensor:
    shortcut = x if isinstance(block.conv_shortcut, nn.Identity) else _conv(block.conv_shortcut, x)
    x = _conv(block.conv1, F.silu(_norm(block.norm1, x)))
    x = block.dropout(F.silu(_norm(block.norm2, x)))
    return _conv(block.conv2, x) + shortcut


def _attention(block: nn.Module, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    qkv = block.to_qkv(_norm(block.norm, x)).flatten(2).transpose(1, 2)  # [B, HW, 3C]
    q, k, v = (part[:, None] for part in qkv.chunk(3, dim=-1))  # one head
    out = F.scaled_dot_product_attention(q, k, v)[:, 0]
    return block.proj(out.transpose(1, 2).reshape(batch, channels, height, width)) + x


def _middle(block: nn.Module, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual(resnet, _attention(attention, x))
    return x


def _resample(block: nn.Module, x: Tensor) -> Tensor:
    # time_conv is left out: a first frame does not pass through it.
    if block.mode.startswith("upsample"):
        # nearest and nearest-exact agree at exactly twice the size, and nearest has the faster kernel
        return block.resample[1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return block.resample(x)


def _head(net: nn.Module, x: Tensor) -> Tensor:
    return _conv(net.conv_out, F.silu(_norm(net.norm_out, x)))


def _residual_down(block: nn.Module, x: Tensor) -> Tensor:
    shortcut = block.avg_shortcut(x[:, :, None])[:, :, 0]
    for resnet in block.resnets:
        x = _residual(resnet, x)
    return (x if block.downsampler is None else _resample(block.downsampler, x)) + shortcut


DOWN = {"WanResample": _resample, "WanAttentionBlock": _attention, "WanResidualDownBlock": _residual_down}


def _up(block: nn.Module, x: Tensor) -> Tensor:
    shortcut = getattr(block, "avg_shortcut", None)  # Wan 2.2's
    beside = 0 if shortcut is None else shortcut(x[:, :, None], first_chunk=True)[:, :, 0]
    for resnet in block.resnets:
        x = _residual(resnet, x)
    upsampler = block.upsampler if hasattr(block, "upsampler") else block.upsamplers and block.upsamplers[0]
    return (_resample(upsampler, x) if upsampler is not None else x) + beside


def encode_frame(vae: AutoencoderKLWan, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, H, W] in -1..1 -> (mean, logvar) of the raw latents, [B, z, h, w] each."""
    net = vae.encoder
    if side := vae.config.patch_size:  # channels of a patch: colour, column, row
        parts = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        pixels = parts.permute(0, 1, 5, 3, 2, 4).flatten(1, 3)
    x = _conv(net.conv_in, pixels.contiguous(memory_format=torch.channels_last))
    for block in net.down_blocks:
        x = DOWN.get(type(block).__name__, _residual)(block, x)
    x = _conv(vae.quant_conv, _head(net, _middle(net.mid_block, x)))
    mean, logvar = x.chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def decode_frame(vae: AutoencoderKLWan, latents: Tensor, *, clamp: bool = True) -> Tensor:
    """Raw latents [B, z, h, w] -> pictures [B, 3, H, W]; clamp=False keeps gradients alive at the borders."""
    net = vae.decoder
    x = _conv(vae.post_quant_conv, latents.contiguous(memory_format=torch.channels_last))
    x = _middle(net.mid_block, _conv(net.conv_in, x))
    for block in net.up_blocks:
        x = _up(block, x)
    x = _head(net, x)
    if side := vae.config.patch_size:
        x = x.unflatten(1, (-1, side, side)).permute(0, 1, 4, 3, 5, 2).flatten(4, 5).flatten(2, 3)
    return x.clamp(-1.0, 1.0) if clamp else x


# ---------------------------------------------------------------- a new one, to be trained


def new_vae(base_dim: int = 16) -> AutoencoderKLWan:
    """An untrained VAE of the shape ComfyUI's VAELoader builds for Wan 2.1, with a width of its own.

    Initialised for pictures: diffusers' default spreads each kernel's variance over three temporal slices of which
    a picture meets one, so signals would shrink by sqrt(3) a layer. Here the last slice gets the 2D default and the
    slices that pictures never meet are zero, which also lets the files compress.
    """
    vae = AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        latents_mean=list(WAN21_MEAN),
        latents_std=list(WAN21_STD),
    )
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.zero_()
                if module.kernel_size == (3, 1, 1):  # temporal convolution of a resampling layer: never trained
                    module.bias.zero_()
                    continue
                plane = torch.empty_like(module.weight[:, :, -1])
                nn.init.kaiming_uniform_(plane, a=5**0.5)
                module.weight[:, :, -1] = plane
    return vae


def wan22_vae(base_dim: int = 160, decoder_base_dim: int = 256) -> AutoencoderKLWan:
    """An untrained VAE of Wan 2.2 TI2V-5B's shape; the widths are the published ones."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        decoder_base_dim=decoder_base_dim,
        z_dim=48,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        latents_mean=list(WAN22_MEAN),
        latents_std=list(WAN22_STD),
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def latents_mean(vae: AutoencoderKLWan) -> Tensor:
    """[1, channels, 1, 1], float32, on the VAE's device."""
    return torch.tensor(vae.config.latents_mean, device=vae.device).view(1, -1, 1, 1)


def latents_std(vae: AutoencoderKLWan) -> Tensor:
    """[1, channels, 1, 1], float32, on the VAE's device."""
    return torch.tensor(vae.config.latents_std, device=vae.device).view(1, -1, 1, 1)


# ---------------------------------------------------------------- key names of the original release

_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_RENAMES = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"^(encoder|decoder)\.conv_in\.", r"\1.conv1."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.head.0."),
    (r"^(encoder|decoder)\.conv_out\.", r"\1.head.2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.(\d+)\.", r".downsamples.\1."),
    # an up block is three residual blocks and one upsampler, numbered straight through in the original
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f".upsamples.{4 * int(m[1]) + int(m[2])}."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f".upsamples.{4 * int(m[1]) + 3}."),
)
# In Wan 2.2's release a block holds its parts.
_RENAMES22 = (
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".downsamples.\1.downsamples.\2."),
    (r"\.down_blocks\.(\d+)\.downsampler\.", r".downsamples.\1.downsamples.2."),
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r".upsamples.\1.upsamples.\2."),
    (r"\.up_blocks\.(\d+)\.upsampler\.", r".upsamples.\1.upsamples.3."),
)


MARK22 = "decoder.upsamples.0.upsamples.0.residual.2.weight"  # what only Wan 2.2's has


def original_key(key: str, residual: bool = False) -> str:
    """diffusers' name of a tensor -> its name in the original Wan 2.1 release; residual: in that of Wan 2.2 TI2V-5B."""
    for pattern, replacement in (*(_RENAMES22 if residual else ()), *_RENAMES):
        key = re.sub(pattern, replacement, key)
    return re.sub(r"\.(norm1|conv1|norm2|conv2|conv_shortcut)\.(?=\w+$)", _residual_name, key)


def _residual_name(match: re.Match) -> str:
    inside = re.search(r"\.(downsamples|upsamples|middle)\.\d+$", match.string[: match.start()])
    return f".{_RESIDUAL[match[1]]}." if inside else match[0]


# ---------------------------------------------------------------- other VAEs


def refuse_other_vaes(entries: Mapping[str, Entry], where: str | Path) -> None:
    """A VaeError that names what the weights are, where they are another VAE than Wan's; shapes alone decide.

    FLUX and SD3 have 16 channels as Wan 2.1 has, but of other meaning: pictures would come out as noise.
    """
    prefix = next(
        (p for p in ("", "first_stage_model.", "vae.") if any(n.startswith(f"{p}decoder.") for n in entries)), ""
    )
    found = {name.removeprefix(prefix): entry.shape for name, entry in entries.items() if name.startswith(prefix)}
    flat = found.get("decoder.conv_in.weight", ())
    if len(flat) == 4:  # kernels of two dimensions: no time
        channels = flat[1]
        known = {4: "Stable Diffusion's or SDXL's", 16: "FLUX's or SD3's", 32: "FLUX.2's"}.get(
            channels, "another model's"
        )
        raise VaeError(
            f"{where} is a VAE of still images with {channels} latent channels, {known}; "
            "its latents mean other things to this DiT. Give the Wan 2.1 VAE (wan_2.1_vae.safetensors)."
        )
    out = found.get("conv2.weight") or found.get("post_quant_conv.weight") or ()
    if len(out) == 5 and out[0] not in (16, 48):
        raise VaeError(
            f"{where} is a video VAE with {out[0]} latent channels; give the Wan 2.1 VAE, which has 16, or that of Wan "
            "2.2 TI2V-5B, which has 48."
        )


# ---------------------------------------------------------------- what the pipeline uses


class PictureVae:
    """A VAE for pictures, whatever file it came from."""

    def __init__(self, model: AutoencoderKLWan) -> None:
        self.model = model.eval()

    @classmethod
    def from_pretrained(cls, path: str | Path) -> PictureVae:
        """A diffusers folder (config.json, diffusion_pytorch_model.safetensors), or one file in Wan's own format, or a
        folder that holds just that file, as the vae/ of a DuoGen checkpoint."""
        path = Path(path)
        if path.is_dir() and not (path / "config.json").is_file():
            inside = sorted(path.glob("*.safetensors"))
            path = inside[0] if len(inside) == 1 else path
        if path.is_file():
            return cls(_load_single_file(path))
        if not (path / "config.json").is_file():
            raise VaeError(
                f"No VAE in {path}: expected a folder with config.json and diffusion_pytorch_model.safetensors, "
                "or one .safetensors file in Wan's format."
            )
        return cls(_load_folder(path))

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, *args, **kwargs) -> PictureVae:
        self.model.to(*args, **kwargs)
        return self

    @property
    def channels(self) -> int:
        return self.model.config.z_dim

    @property
    def spatial(self) -> int:
        """Pixels across a cell of the latent: 8, or 16 of Wan 2.2's."""
        return (self.model.config.patch_size or 1) * 2 ** (len(self.model.config.dim_mult) - 1)

    @property
    def size_step(self) -> int:
        """Sides of pictures are multiples of it: a cell times the DiT's patch of two."""
        return 2 * self.spatial

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int, int]:
        """[1, channels, h, w] of one picture."""
        return 1, self.channels, height // self.spatial, width // self.spatial

    @torch.no_grad()
    def encode(self, pixels: np.ndarray | Tensor) -> Tensor:
        """uint8 [H, W, 3] or float [B, 3, H, W] in -1..1 -> normalised latents [B, channels, h, w], float32."""
        image = pixels_to_tensor(pixels) if isinstance(pixels, np.ndarray) else pixels
        height, width = image.shape[-2:]
        step = self.size_step
        if image.ndim != 4 or height % step or width % step:
            raise VaeError(
                f"The VAE takes images [B, 3, H, W] with sides that are multiples of {step}; it was given "
                f"{tuple(image.shape)}. Resize with fit_pixels first, to {fit_size(width, height, step)}."
            )
        mean, _ = encode_frame(self.model, image.to(self.model.device, self.model.dtype))
        return ((mean.float() - latents_mean(self.model)) / latents_std(self.model)).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, channels, h, w] -> pictures float32 [B, 3, H, W] in -1..1."""
        if latents.ndim != 4 or latents.shape[1] != self.model.config.z_dim:
            raise VaeError(
                f"The VAE decodes latents [B, {self.model.config.z_dim}, h, w]; it was given {tuple(latents.shape)}."
            )
        raw = latents.to(self.model.device, torch.float32) * latents_std(self.model) + latents_mean(self.model)
        return decode_frame(self.model, raw.to(self.model.dtype)).float().contiguous()

    def decode_pixels(self, latents: Tensor) -> np.ndarray:
        """Normalised latents [1, channels, h, w] -> uint8 [H, W, 3]. Never draws a black image of what is no number."""
        image = self.decode(latents)
        if not bool(latents.isfinite().all()) or not bool(image.isfinite().all()):
            raise VaeError(
                "The image is not made of numbers any more: something in the model grew too large for its precision, "
                "or its weights are damaged; compute in bf16 or fp32 (--dtype)."
            )
        return tensor_to_pixels(image)

    def save_pretrained(self, folder: str | Path) -> None:
        self.model.save_pretrained(str(folder))

    def to_single_file(self) -> dict[str, Tensor]:
        """The weights under the names of the original release: what ComfyUI's VAELoader reads. Save as safetensors."""
        residual = self.model.config.is_residual
        return {original_key(key, residual): tensor.contiguous() for key, tensor in self.model.state_dict().items()}


def _load_folder(folder: Path) -> AutoencoderKLWan:
    """In float32, as diffusers loads it."""
    config = read_json(folder / "config.json", "configuration of a VAE")
    name = config.get("_class_name") if isinstance(config, dict) else None
    weights = folder_weights(folder, "diffusion_pytorch_model", "weights of the VAE")
    refuse_other_vaes(weights.entries, folder)
    if name != "AutoencoderKLWan":
        raise VaeError(f"{folder / 'config.json'} names the model {name!r}; expected an AutoencoderKLWan.")
    check_sizes(config, weights.entries, folder / "config.json")
    where = folder / "config.json"
    vae = build_empty(lambda: AutoencoderKLWan.from_config(config), where, "an AutoencoderKLWan")
    formats = check_module(vae, weights, folder, "VAE")
    side, colours = vae.config.patch_size, vae.config.in_channels  # no tensor shows the side of a patch
    if (side is not None and not (type(side) is int and side >= 1)) or 3 * (side or 1) ** 2 != colours:
        raise VaeError(
            f"{where} has patch_size {side!r} and in_channels {colours!r}; expected none and 3 as Wan 2.1's, or 2 and "
            "12 as Wan 2.2's."
        )
    try:
        mean, std = (torch.tensor(vae.config[name], dtype=torch.float32) for name in ("latents_mean", "latents_std"))
        right = mean.shape == std.shape == (vae.config.z_dim,) and bool(mean.isfinite().all() and std.isfinite().all())
    except (TypeError, ValueError, RuntimeError):  # not numbers
        right = False
    if not right or not bool((std > 0).all()):
        raise VaeError(f"{where}: latents_mean and latents_std must be {vae.config.z_dim} numbers, those above 0.")
    return fill_module(vae, weights, formats, dtype=torch.float32, prepare=None, copy=True)


def _load_single_file(path: Path) -> AutoencoderKLWan:
    weights = WeightFiles([path], "weights of the VAE")
    refuse_other_vaes(weights.entries, path)
    mark = weights.entries.get("decoder.head.0.gamma")
    if mark is None or not mark.shape or not mark.shape[0]:
        raise VaeError(f"{path} is not a Wan VAE: it has no tensor decoder.head.0.gamma.")
    residual, entry = MARK22 in weights.entries, weights.entries.get("encoder.conv1.weight")
    width = entry.shape[0] if entry is not None and entry.shape else 0
    name = f"Wan 2.{2 if residual else 1} VAE"
    vae = build_empty(
        lambda: wan22_vae(width or 160, mark.shape[0]) if residual else new_vae(mark.shape[0]), path, f"a {name}"
    )
    names = {original_key(key, residual): key for key in vae.state_dict()}
    # Under the file's own names, which are what a message has to tell.
    expected = {name: tuple(vae.state_dict()[key].shape) for name, key in names.items()}
    check_tensors(weights.entries, expected, path, name)
    # In one type, that of the output's norm: files that were made smaller keep some tensors in float32. A file may be
    # stored in fp16, but activations grow too large to compute in it.
    dtype = FLOATS.get(mark.dtype, torch.bfloat16)
    dtype = torch.float32 if dtype == torch.float16 else dtype
    return fill_module(vae, weights, {}, rename=names.__getitem__, dtype=dtype, prepare=None)
