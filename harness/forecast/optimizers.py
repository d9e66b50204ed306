"""What an optimizer keeps for every trained weight, by transformers' names for optimizers."""

from harness.spec import Value


class Kept(Value):
    """Bytes per trained weight whose own dtype takes `width` bytes."""

    states: float = 0.0
    """State tensors in the weight's dtype: 2 for AdamW."""
    fixed: float = 0.0
    """Bytes of state whatever the weight's dtype: 2 * (1 + 4/256) in 8-bit AdamW."""
    temporary: float = 0.0
    """Copies of the weight's size while a step is taken: 1 for `foreach`, which updates all weights at once."""
    paged: bool = False
    """State lives in managed memory, which the driver moves out: torch does not count it."""
    known: bool = True

    def bytes_kept(self, width: float) -> float:
        """State per weight on the device."""
        return 0.0 if self.paged else self.states * width + self.fixed


EIGHT_BIT = 1 + 4 / 256
"""A code and its share of a block's fp32 scale (Dettmers et al. 2021, arXiv:2110.02861; blocks of 256)."""

OPTIMIZERS: dict[str, Kept] = {
    "adamw_torch": Kept(states=2, temporary=1),  # torch picks foreach on CUDA
    "adamw_torch_fused": Kept(states=2),
    "adamw_torch_4bit": Kept(fixed=2 * (0.5 + 4 / 128)),
    "adamw_torch_8bit": Kept(fixed=2 * EIGHT_BIT),
    "adamw_bnb_8bit": Kept(fixed=2 * EIGHT_BIT),
    "adamw_8bit": Kept(fixed=2 * EIGHT_BIT),
    "paged_adamw_32bit": Kept(fixed=8, paged=True),
    "paged_adamw_8bit": Kept(fixed=2 * EIGHT_BIT, paged=True),
    "ademamix": Kept(states=3),
    "ademamix_8bit": Kept(fixed=3 * EIGHT_BIT),
    "paged_ademamix_32bit": Kept(fixed=12, paged=True),
    "paged_ademamix_8bit": Kept(fixed=3 * EIGHT_BIT, paged=True),
    "lion_32bit": Kept(fixed=4),
    "lion_8bit": Kept(fixed=EIGHT_BIT),
    "paged_lion_32bit": Kept(fixed=4, paged=True),
    "paged_lion_8bit": Kept(fixed=EIGHT_BIT, paged=True),
    "adafactor": Kept(temporary=1),  # a row and a column per matrix: nothing beside the matrix
    "sgd": Kept(temporary=1),
    "adagrad": Kept(states=1, temporary=1),
    "rmsprop": Kept(states=1, temporary=1),
    "rmsprop_bnb": Kept(fixed=4),
    "rmsprop_bnb_8bit": Kept(fixed=EIGHT_BIT),
    "rmsprop_bnb_32bit": Kept(fixed=4),
    "schedule_free_adamw": Kept(states=2, temporary=1),
    "schedule_free_sgd": Kept(states=1, temporary=1),
    "adamw_anyprecision": Kept(states=2, temporary=1),
    "stable_adamw": Kept(states=2, temporary=1),
}
"""Sources: torch.optim, bitsandbytes and transformers.training_args.OptimizerNames."""

NOT_MODELLED = (
    "adamw_torch_xla", "adamw_torch_npu_fused", "galore_adamw", "galore_adamw_8bit", "galore_adafactor",
    "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "lomo", "adalomo",
    "grokadamw", "schedule_free_radam", "apollo_adamw", "apollo_adamw_layerwise",
)  # fmt: skip
"""Further names that transformers takes."""

NAMES = frozenset([*OPTIMIZERS, *NOT_MODELLED])
"""Every name that transformers takes."""

UNKNOWN = Kept(states=2, temporary=1, known=False)


def kept(name: str) -> Kept:
    """What is known of an optimizer; AdamW's figures, marked as not known, for any other."""
    return OPTIMIZERS.get(name, UNKNOWN)
