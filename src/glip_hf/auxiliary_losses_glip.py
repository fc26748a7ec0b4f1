# Copyright 2026 The glip_hf authors. MIT licence.
"""The optional losses of GLIP's training, all off in the released models; each has a head of its own.

* `loss_mlm`: masked language modelling. In training some tokens of the caption are masked, and predicted from the
  language state after the fusion blocks.
* `loss_soft_token`: the plain token loss. Every location predicts the positions of its tokens from the image alone (the
  soft tokens of MDETR, arXiv 2104.12763), with the focal loss of the dot product.
* `loss_contrastive`: contrastive alignment (MDETR). Locations and tokens are projected to a small common space; a
  location is contrasted with all tokens, and a token with all locations.

`GlipConfig` gives each a weight; a head exists only where its weight is above 0. It takes no part in inference. In the
original the contrastive loss excludes the dot product and padding counts as tokens; here it is added to the dot
product, reads the same language state and leaves padding out. A batch without a masked token has an MLM loss of 0, not
NaN.

No released checkpoint holds these heads and the converter refuses them. The original calls them `rpn.head.mlm_head.*`
(here `auxiliary.mlm_*`), `rpn.head.token_logits.*` (a 1x1 convolution; here the linear `auxiliary.soft_tokens.*`) and
`rpn.head.contrastive_align_projection_{image,text}.*`, `rpn.resizer.*` (here `auxiliary.contrastive_{image,text}.*`).

Letters: N (image, caption) pairs, A locations, T text tokens, D channels, E width of the text encoder.
"""

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from .configuration_glip import GlipConfig
from .loss_glip import assign_atss, mean_over_processes, token_focal_loss

IGNORED = -100  # label of tokens that masked language modelling does not predict


def hide_tokens(
    input_ids: Tensor,
    attention_mask: Tensor,
    greenlight_map: Tensor,
    mask_token_id: int,
    vocab_size: int,
    probability: float,
) -> tuple[Tensor, Tensor]:
    """Mask a share of the tokens as BERT does: 80 % become [MASK], 10 % a random token, 10 % stay.

    Args:
        input_ids, attention_mask: [N, T].
        greenlight_map: [N, T]; 1: may be masked and is then predicted, 0: may be masked (as the original does, special
            tokens included) but is not predicted, -1: is never masked. See `data.dataset.greenlight_map`.
        probability: share of the tokens masked.

    Returns:
        the input tokens and the labels, `IGNORED` where nothing is predicted; both [N, T].
    """
    chance = torch.rand(input_ids.shape, device=input_ids.device)
    hidden = (chance < probability) & (greenlight_map >= 0) & attention_mask.bool()
    kind = chance / max(probability, 1e-12)
    random_ids = torch.randint(vocab_size, input_ids.shape, device=input_ids.device)
    read = input_ids.masked_fill(hidden & (kind < 0.8), mask_token_id)
    read = torch.where(hidden & (kind >= 0.8) & (kind < 0.9), random_ids, read)
    return read, input_ids.masked_fill(~(hidden & (greenlight_map == 1)), IGNORED)


def masked_language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [N, T, vocabulary] at labels [N, T] int64 that are not `IGNORED`.

    The mean over these tokens of all processes together; 0 where there is none.
    """
    count = mean_over_processes((labels != IGNORED).sum().to(logits.dtype)).clamp(min=1)
    total = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / count


def contrastive_alignment_loss(logits: Tensor, targets: Tensor, text_mask: Tensor) -> Tensor:
    """Sum of the contrastive loss over logits [N, A, T]; targets [N, A, T] bool, text_mask [N, T] bool.

    For every location with tokens: log-sum-exp over all tokens, minus the mean logit of its own; the same for every
    token with locations, over all locations; half of both. (MDETR, equations 1 and 2.)
    """
    real = text_mask[:, None].expand_as(targets)
    targets = targets & real
    everything = logits.masked_fill(~real, torch.finfo(logits.dtype).min)

    def one_way(dim: int) -> Tensor:
        count = targets.sum(dim)
        pull = logits.masked_fill(~targets, 0).sum(dim) / count.clamp(min=1)
        return (everything.logsumexp(dim) - pull).masked_fill(count == 0, 0).sum()

    return (one_way(2) + one_way(1)) / 2


def token_targets(
    labels: list[dict[str, Tensor]], anchors: Tensor, level_sizes: list[int], num_tokens: int, top_k: int
) -> tuple[Tensor, Tensor]:
    """The tokens of the box each location is responsible for, [N, A, T] bool, and which have a box, [N, A] bool."""
    targets = torch.zeros(len(labels), len(anchors), num_tokens, dtype=torch.bool, device=anchors.device)
    owners = assign_atss(anchors, level_sizes, [label["boxes"].float() for label in labels], top_k)
    for row, owner, label in zip(targets, owners, labels):
        row[owner >= 0] = label["positive_map"][owner[owner >= 0]] != 0
    return targets, owners >= 0


def default_greenlight_map(labels: list[dict[str, Tensor]], num_tokens: int) -> Tensor:
    """[N, T]: the `greenlight_map` of each label; where it has none, 1 at the tokens of its boxes and 0 elsewhere."""
    rows = []
    for label in labels:
        given = label.get("greenlight_map")
        if given is None:
            given = (label["positive_map"] != 0).any(0)
        if given.shape != (num_tokens,):
            raise ValueError(f"a greenlight_map has shape {tuple(given.shape)}, not ({num_tokens},): one per token.")
        rows.append(given.long())
    return torch.stack(rows)


class GlipAuxiliaryHeads(nn.Module):
    """The heads of the optional losses that the configuration turns on."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text_config
        if config.mlm_loss_weight:
            self.mlm_transform = BertPredictionHeadTransform(text)
            self.mlm_decoder = nn.Linear(text.hidden_size, text.vocab_size)
        if config.soft_token_loss_weight:
            self.soft_tokens = nn.Linear(config.d_model, config.max_text_length)
        if config.contrastive_loss_weight:
            self.contrastive_image = nn.Linear(config.d_model, config.contrastive_hidden_size)
            self.contrastive_text = nn.Linear(text.hidden_size, config.contrastive_hidden_size)
            self.contrastive_log_scale = nn.Parameter(torch.empty(1))

    @staticmethod
    def wanted(config: GlipConfig) -> bool:
        """Whether any of these losses is on."""
        return any((config.mlm_loss_weight, config.soft_token_loss_weight, config.contrastive_loss_weight))

    def hide_words(
        self, input_ids: Tensor, attention_mask: Tensor | None, labels: list[dict[str, Tensor]]
    ) -> tuple[Tensor, Tensor | None]:
        """Input of the text encoder in training, and the labels of masked language modelling (None if it is off); a
        ValueError if captions and labels do not pair one to one."""
        if not self.config.mlm_loss_weight:
            return input_ids, None
        if len(labels) != len(input_ids):
            raise ValueError(
                f"masked language modelling got {len(input_ids)} captions for {len(labels)} labels: give each image "
                "its own caption, or set mlm_loss_weight=0."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return hide_tokens(
            input_ids,
            attention_mask,
            default_greenlight_map(labels, input_ids.shape[1]).to(input_ids.device),
            self.config.mask_token_id,
            self.config.text_config.vocab_size,
            self.config.mlm_probability,
        )

    def forward(
        self,
        vision: Tensor,
        text: Tensor,
        text_mask: Tensor,
        labels: list[dict[str, Tensor]],
        anchors: Tensor,
        level_sizes: list[int],
        asked: Tensor | None,
    ) -> dict[str, Tensor]:
        """The weighted losses that are on.

        Args:
            vision: [N, A, D]; text: [N, T, E], the states that the dot product reads; text_mask: [N, T].
            labels, anchors, level_sizes: see `loss_glip.grounding_loss`.
            asked: labels from `hide_words`; None leaves the MLM loss out.
        """
        config, losses = self.config, {}
        text_mask = text_mask.bool()
        if config.mlm_loss_weight and asked is not None:
            logits = self.mlm_decoder(self.mlm_transform(text))
            losses["loss_mlm"] = config.mlm_loss_weight * masked_language_loss(logits.float(), asked)
        if not (config.soft_token_loss_weight or config.contrastive_loss_weight):
            return losses
        num_tokens = text.shape[1]
        targets, matched = token_targets(labels, anchors, level_sizes, num_tokens, config.atss_top_k)
        num_positive = mean_over_processes(matched.sum().float()).clamp(min=1)
        if config.soft_token_loss_weight:
            logits = self.soft_tokens(vision)[..., :num_tokens].float()
            binary = targets.to(logits.dtype)
            if num_tokens == config.max_text_length:
                # "no object", as in `grounding_loss`
                binary[..., -1].masked_fill_(~matched, 1)
            loss = token_focal_loss(logits, binary, text_mask, config.focal_alpha, config.focal_gamma)
            losses["loss_soft_token"] = config.soft_token_loss_weight * loss / num_positive
        if config.contrastive_loss_weight:
            queries = nn.functional.normalize(self.contrastive_image(vision).float(), dim=-1)
            tokens = nn.functional.normalize(self.contrastive_text(text).float(), dim=-1)
            logits = queries @ tokens.transpose(1, 2) / self.contrastive_log_scale.float().exp()
            loss = contrastive_alignment_loss(logits, targets, text_mask)
            losses["loss_contrastive"] = config.contrastive_loss_weight * loss / num_positive
        return losses
