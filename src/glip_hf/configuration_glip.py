# Copyright 2026 The glip_hf authors. MIT licence.
"""Configuration of GLIP, and presets for the released checkpoints."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.backbone_utils import consolidate_backbone_kwargs_to_config
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import auto_docstring

from ._compat import interval


@auto_docstring(
    custom_intro="""
    Configuration of [`GlipModel`] and [`GlipForGrounding`] (Grounded Language-Image Pre-training, arXiv 2112.03857).
    The defaults are those of GLIP-T: Swin-T, BERT-base, six blocks of deep fusion and dynamic head.
    """
)
@strict
class GlipConfig(PreTrainedConfig):
    r"""
    backbone_config (`dict` or `PreTrainedConfig`, *optional*):
        Vision backbone; Swin-T with output stages 2, 3, 4 by default. Any backbone that `AutoBackbone` builds is
        accepted if it gives exactly three feature maps, at strides 8, 16 and 32.
    text_config (`dict` or `PreTrainedConfig`, *optional*):
        BERT text encoder (no pooler); BERT-base-uncased by default. The text layers of the head use it too.
    d_model (`int`, *optional*, defaults to 256):
        Channels of the pyramid, of the visual tokens and of the head.
    num_blocks (`int`, *optional*, defaults to 6):
        Blocks of the head, each [fusion -> text layer ->] DyConv; 8 in GLIP-L.
    use_fusion (`bool`, *optional*, defaults to `True`):
        Deep fusion of image and caption. `False` is GLIP-A: no fusion, no text layers, and the dot product takes the
        masked output of the text encoder.
    fusion_hidden_size (`int`, *optional*, defaults to 2048):
        Inner width of the bidirectional cross-attention, shared by its heads.
    fusion_heads (`int`, *optional*, defaults to 8):
        Heads of the bidirectional cross-attention.
    fusion_dropout (`float`, *optional*, defaults to 0.1):
        Dropout on both attention matrices, in training only.
    fusion_init_gamma (`float`, *optional*):
        Initial value of the layer scales after the fusion; 1 / `num_blocks` when not given.
    clamp_value (`float`, *optional*, defaults to 50000):
        Attention scores, feed-forward activations of the text layers and logits are clamped to plus or minus this
        value, which guards half precision.
    group_norm_groups (`int`, *optional*, defaults to 16):
        Groups of the GroupNorm after each deformable convolution.
    group_norm_eps (`float`, *optional*, defaults to 1e-05):
        Epsilon of that GroupNorm.
    dynamic_relu_reduction (`int`, *optional*, defaults to 4):
        Channel reduction inside Dynamic ReLU.
    anchor_scale (`int`, *optional*, defaults to 8):
        Side of the square anchor of a level, in strides of that level (8, 16, 32, 64, 128).
    max_text_length (`int`, *optional*, defaults to 256):
        Longest caption in tokens, [CLS] and [SEP] included.
    num_class_channels (`int`, *optional*, defaults to 80):
        Output channels of the classification layer that original checkpoints carry and never use. It is kept, frozen,
        so that a converted model converts back bit for bit; 0 leaves it out.
    dropblock_prob (`float`, *optional*, defaults to 0.3):
        DropBlock on the merged feature maps of P3 and P4, in training only.
    dropblock_size (`int`, *optional*, defaults to 3):
        Side of a dropped square.
    prior_probability (`float`, *optional*, defaults to 0.01):
        Initial probability of a token match, which sets the initial bias of the dot product.
    atss_top_k (`int`, *optional*, defaults to 9):
        Anchors per level that ATSS considers for a box.
    focal_alpha (`float`, *optional*, defaults to 0.25):
        Weight of the matching tokens in the focal loss.
    focal_gamma (`float`, *optional*, defaults to 2.0):
        Exponent of the focal loss.
    token_loss_weight (`float`, *optional*, defaults to 1.0):
        Weight of the token loss in the sum.
    bbox_loss_weight (`float`, *optional*, defaults to 2.0):
        Weight of the GIoU loss.
    centerness_loss_weight (`float`, *optional*, defaults to 1.0):
        Weight of the centerness loss.
    mlm_loss_weight (`float`, *optional*, defaults to 0.0):
        Weight of masked language modelling over the caption; 0 leaves its head out, as in all released models. See
        `auxiliary_losses_glip` for this and the next two.
    mlm_probability (`float`, *optional*, defaults to 0.15):
        Share of the tokens that masked language modelling hides.
    mask_token_id (`int`, *optional*, defaults to 103):
        The tokenizer's [MASK].
    soft_token_loss_weight (`float`, *optional*, defaults to 0.0):
        Weight of the plain token loss, whose head predicts token positions from the image alone; 0 leaves it out.
    contrastive_loss_weight (`float`, *optional*, defaults to 0.0):
        Weight of the contrastive alignment of locations and tokens; 0 leaves its head out.
    contrastive_hidden_size (`int`, *optional*, defaults to 64):
        Width of the space in which they are aligned.
    offset_initializer_range (`float`, *optional*):
        Standard deviation of the initial weights of the convolutions that predict the offsets of the sampling points;
        their bias is then zero-initialised. `None` is PyTorch's default, as in the original; 0.0 is DCN's zero
        initialisation (arXiv 1703.06211), which trains much faster from scratch: see docs/pre-training.md.
    prompt_table_length (`int`, *optional*, defaults to 0):
        Rows of the learned table that prompt tuning adds to the text embeddings, row t to token t; 0 for none, 1000 in
        the original. See `prompt_table_glip`.

    Examples:

    ```python
    >>> from glip_hf import GlipConfig, GlipForGrounding

    >>> config = GlipConfig.from_preset("glip_tiny_model_o365_goldg")
    >>> model = GlipForGrounding(config)  # random weights
    ```"""

    model_type = "glip"
    sub_configs = {"backbone_config": AutoConfig, "text_config": AutoConfig}
    attribute_map = {"hidden_size": "d_model", "num_attention_heads": "fusion_heads", "num_hidden_layers": "num_blocks"}

    backbone_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    d_model: int = interval(min=1)(default=256)
    num_blocks: int = interval(min=1)(default=6)
    use_fusion: bool = True
    fusion_hidden_size: int = interval(min=1)(default=2048)
    fusion_heads: int = interval(min=1)(default=8)
    fusion_dropout: float | int = interval(min=0, max=1, exclude_max=True)(default=0.1)
    fusion_init_gamma: float | int | None = None
    clamp_value: float | int = interval(min=0, exclude_min=True)(default=50000)
    group_norm_groups: int = interval(min=1)(default=16)
    group_norm_eps: float = interval(min=0, exclude_min=True)(default=1e-5)
    dynamic_relu_reduction: int = interval(min=1)(default=4)
    anchor_scale: int = interval(min=1)(default=8)
    max_text_length: int = interval(min=3)(default=256)  # [CLS], one token, [SEP]
    num_class_channels: int = interval(min=0)(default=80)
    dropblock_prob: float | int = interval(min=0, max=1, exclude_max=True)(default=0.3)
    dropblock_size: int = interval(min=1)(default=3)
    prior_probability: float = interval(min=0, max=1, exclude_min=True, exclude_max=True)(default=0.01)
    atss_top_k: int = interval(min=1)(default=9)
    focal_alpha: float | int = interval(min=0, max=1)(default=0.25)
    focal_gamma: float | int = interval(min=0)(default=2.0)
    token_loss_weight: float | int = interval(min=0)(default=1.0)
    bbox_loss_weight: float | int = interval(min=0)(default=2.0)
    centerness_loss_weight: float | int = interval(min=0)(default=1.0)
    mlm_loss_weight: float | int = interval(min=0)(default=0.0)
    mlm_probability: float | int = interval(min=0, max=1, exclude_max=True)(default=0.15)
    mask_token_id: int = 103
    soft_token_loss_weight: float | int = interval(min=0)(default=0.0)
    contrastive_loss_weight: float | int = interval(min=0)(default=0.0)
    contrastive_hidden_size: int = interval(min=1)(default=64)
    offset_initializer_range: float | int | None = None
    prompt_table_length: int = interval(min=0)(default=0)
    initializer_range: float = interval(min=0)(default=0.02)
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.backbone_config, kwargs = consolidate_backbone_kwargs_to_config(
            self.backbone_config,
            default_config_type="swin",
            default_config_kwargs={"out_indices": [2, 3, 4], "drop_path_rate": 0.2},
            **kwargs,
        )
        if not isinstance(self.text_config, PreTrainedConfig):
            text = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(text.pop("model_type", "bert"), **text)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse fields that contradict each other, with a ValueError that names the field, its value and what to
        change; called by `@strict` at construction."""
        if (self.offset_initializer_range or 0) < 0:
            raise ValueError(f"offset_initializer_range={self.offset_initializer_range} must not be negative.")
        for name, divisor in (
            ("d_model", "group_norm_groups"),
            ("d_model", "dynamic_relu_reduction"),
            ("fusion_hidden_size", "fusion_heads"),
        ):
            if getattr(self, name) % getattr(self, divisor):
                raise ValueError(
                    f"{name}={getattr(self, name)} is not divisible by {divisor}={getattr(self, divisor)}: change one."
                )
        if self.dropblock_size % 2 == 0:
            raise ValueError(f"dropblock_size={self.dropblock_size} must be odd: a dropped square has a centre.")
        self._validate_backbone()
        self._validate_text()

    def _validate_backbone(self) -> None:
        backbone = self.backbone_config
        stages = getattr(backbone, "out_features", None)
        if stages is None:
            raise ValueError(
                f"backbone_config of type {getattr(backbone, 'model_type', type(backbone))!r} has no out_features: "
                "choose a type that AutoBackbone supports."
            )
        if len(stages) != 3:
            raise ValueError(
                f"backbone_config gives {len(stages)} feature maps ({stages}), GLIP needs exactly three, at strides 8, "
                "16 and 32: set its out_indices (Swin: out_indices=[2, 3, 4])."
            )
        if backbone.model_type != "swin":
            return
        if list(stages) != ["stage2", "stage3", "stage4"]:
            raise ValueError(
                f"backbone_config.out_features={stages}: with Swin these stages do not have strides 8, 16 and 32. Set "
                "out_indices=[2, 3, 4]."
            )
        if backbone.use_absolute_embeddings:
            raise ValueError("backbone_config.use_absolute_embeddings=True fixes the image size: set it to False.")
        if backbone.patch_size not in (4, [4, 4], (4, 4)):
            raise ValueError(f"backbone_config.patch_size={backbone.patch_size}: GLIP's strides need patch_size=4.")

    def _validate_text(self) -> None:
        text = self.text_config
        if text.model_type != "bert":
            raise ValueError(f"text_config.model_type={text.model_type!r}: GLIP's text side is BERT; use a BertConfig.")
        if text.is_decoder or text.add_cross_attention:
            raise ValueError("text_config is not an encoder: set is_decoder=False and add_cross_attention=False.")
        if self.max_text_length > text.max_position_embeddings:
            raise ValueError(
                f"max_text_length={self.max_text_length} must not exceed text_config.max_position_embeddings="
                f"{text.max_position_embeddings}."
            )

    @property
    def reference(self) -> bool:
        """Always False; `GlipConfig(reference=True)`, of earlier versions, is refused."""
        return False

    @reference.setter
    def reference(self, on: bool) -> None:
        if on:
            raise ValueError(
                "reference=True is no longer part of the model: for the textbook formulation call "
                "textbook_view(model) of benchmarks/textbook.py."
            )

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "GlipConfig":
        """Configuration of a released checkpoint, by the stem of its file name.

        Args:
            name: a key of `PRESETS`, e.g. `"glip_tiny_model_o365_goldg"`.
            overrides: fields to change.

        Raises:
            ValueError: for an unknown name; lists the known ones.
        """
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **overrides})


# Stride in pixels of P3 to P7: three feature maps of the backbone, two downsampled from them
PYRAMID_STRIDES = (8, 16, 32, 64, 128)

_SWIN_T = {
    "model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7,
    "drop_path_rate": 0.2, "out_indices": [2, 3, 4],
}  # fmt: skip
_SWIN_L = {
    "model_type": "swin", "embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12,
    "drop_path_rate": 0.4, "out_indices": [2, 3, 4],
}  # fmt: skip
_TINY_A: dict[str, Any] = {"backbone_config": _SWIN_T, "use_fusion": False}
_TINY: dict[str, Any] = {"backbone_config": _SWIN_T}
_LARGE: dict[str, Any] = {"backbone_config": _SWIN_L, "num_blocks": 8}

# Fields of each released checkpoint; those that differ in their training data share an architecture
PRESETS: dict[str, dict[str, Any]] = {
    "glip_a_tiny_o365": _TINY_A,
    "glip_tiny_model_o365": _TINY,
    "glip_tiny_model_o365_goldg": _TINY,
    "glip_tiny_model_o365_goldg_cc_sbu": _TINY,
    "glip_tiny_model_o365_goldg_lvisbest": _TINY,
    "glip_tiny_model_o365_goldg_cc_sbu_lvisbest": _TINY,
    "glip_large_model": _LARGE,
    "glip_large_model_lvisbest": _LARGE,
}

__all__ = ["PRESETS", "PYRAMID_STRIDES", "GlipConfig"]
