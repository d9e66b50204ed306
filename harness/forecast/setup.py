"""What a training run is, as far as its memory and time depend on it."""

from typing import Literal

from pydantic import Field

from harness.forecast.architecture import Architecture, Linear
from harness.interfaces import AdapterShape
from harness.spec import Dtype, Value

BYTES: dict[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

Attention = Literal["flash", "sdpa", "eager"]
Loss = Literal["full", "triton", "liger", "chunked", "cut"]
"""How logits become a loss: `full`: all logits, upcast (transformers); `triton`: gradient in place (fms, Unsloth);
`liger`: fused with the head in chunks; `chunked`: head and loss a chunk of tokens at a time; `cut`: never stored."""
Sharding = Literal["none", "ddp", "fsdp", "zero1", "zero2", "zero3"]


Software = Literal["harness", "transformers", "litgpt", "torchtune"]


class Profile(Value):
    """How the libraries in use behave where their versions, or their choices, change bytes."""

    name: str
    """Such as `harness`, `trl-2023`, `litgpt-2024`."""
    software: Software = "transformers"
    """Whose operations a step is made of: `transformers` stands for its trainer and others built on it."""
    logit_bytes: float | None = None
    """Bytes per logit at the peak of the loss where it differs from the loss path's own."""
    residual: Dtype | None = None
    """Dtype of the residual stream where it is not the compute dtype: fp32 after PEFT's k-bit preparation."""
    rest: Dtype | None = None
    """Dtype of embeddings, head and norms of a quantized base where it is not the compute dtype."""
    autocast: bool = True
    """Whether the step runs under torch.autocast, so that fp32 adapters multiply 16-bit copies."""
    fused_layer: bool = False
    """Fused kernels for norms, rotary embedding and the MLP's activation (Liger, Unsloth, fms)."""
    holds_logits: bool = False
    """The training loop holds the model's outputs, and so the logits, through the backward pass."""
    flash: Literal[1, 2] = 2
    """Generation of the flash kernel: the first reaches about half the rate of the second (arXiv:2307.08691)."""
    keeps_quantized_input: bool = False
    """bitsandbytes before 0.43.2 kept the input of every 4-bit layer for backward (bitsandbytes#1270)."""
    stale_inputs: bool = False
    """Those inputs outlive the backward pass and are still there in the next forward pass (LitGPT, 2024)."""
    quantizes_head: bool = False
    """The head is quantized too (Lightning Fabric's bitsandbytes plugin)."""
    peaks_first: bool = False
    """The longest batch comes first, before gradients and optimizer state exist."""
    compiled: bool = False
    """torch.compile of the layers: fewer intermediate results are kept."""
    optimizer_in_backward: bool = False
    """Each weight is updated, and its gradient freed, as soon as the gradient is there."""
    shards_upcast: bool = True
    """FSDP upcasts trained weights, and what one layer keeps, to fp32 under mixed precision (accelerate since 2024)."""
    unsharded_layers: int = 1
    """Layers whose whole weights an FSDP rank holds at a time."""
    expandable_segments: bool = True
    """PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, which the harness sets: little is lost to fragmentation."""


HARNESS = Profile(name="harness", software="harness")
"""What the trials of this project run: transformers 5 and TRL 1, no PEFT preparation, expandable segments."""


class Pass(Value):
    """What one forward and backward pass needs beside weights, optimizer state and whole gradients, in bytes."""

    saved: int
    """Activations that wait for the backward pass when it begins, logits not counted."""
    loss: int
    """Logits, their copies and the loss."""
    layer: int
    """The backward pass of one layer, what is computed again included."""
    end: int
    """The backward pass of the last layer to be gone through, when every gradient is there."""


class Setup(Value):
    """One training run. Sizes are per device unless they say otherwise."""

    architecture: Architecture
    full: bool
    """Every weight is trained."""
    adapter: AdapterShape | None = None
    """What is added beside frozen weights; None with `full`."""
    weight_bits: float = Field(gt=0)
    """Bits per weight as stored: of the linear layers if quantized (scales included), of everything if not."""
    quantized: bool = False
    """The linear layers are stored in codes and the rest in `compute` (or the profile's `rest`)."""
    quantization: str = "bf16"
    """Its name: `nf4` and `int8` need different temporary copies."""
    compute: Dtype = "bf16"
    adapter_dtype: Dtype = "fp32"
    optimizer: str = "adamw_torch"
    """A name of transformers' `OptimizerNames`; see `optimizers.py` for what is known."""
    micro_batch: int = Field(gt=0)
    accumulation: int = Field(1, gt=0)
    length: int = Field(gt=1)
    """Tokens per sequence, padding included."""
    checkpointing: bool | Literal["offloaded"] = False
    attention: Attention = "sdpa"
    padded: bool = True
    """Sequences of several lengths in a batch: SDPA then needs a mask, which rules flash attention out."""
    loss: Loss = "full"
    devices: int = Field(1, gt=0)
    sharding: Sharding = "none"
    offload: bool = False
    """Weights and optimizer state live in the host's memory."""
    profile: Profile = HARNESS

    @property
    def tokens(self) -> int:
        """Positions per micro-batch and device."""
        return self.micro_batch * self.length

    @property
    def targets(self) -> tuple[Linear, ...]:
        """Linear layers of a decoder layer that carry an adapter."""
        if self.adapter is None:
            return ()
        wanted = self.adapter.targets
        return tuple(one for one in self.architecture.linears if wanted is None or one.name in wanted)

    @property
    def adapter_parameters(self) -> int:
        """Trainable weights of the adapters, without whole modules that are trained beside them."""
        if self.adapter is None:
            return 0
        rank, dora = self.adapter.rank, self.adapter.dora
        each = sum(one.copies * (rank * (one.inputs + one.outputs) + dora * one.outputs) for one in self.targets)
        return self.architecture.layers * each

    @property
    def trainable(self) -> int:
        return self.architecture.parameters if self.full else self.adapter_parameters
