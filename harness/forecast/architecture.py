"""The shapes of a decoder, from its published `config.json`: every byte and every operation follows from them."""

from typing import Literal

from pydantic import Field

from harness.spec import Value


class Linear(Value):
    """One linear layer of every decoder layer."""

    name: str
    """Its module's last name, such as `q_proj`."""
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    """How many of it a decoder layer has: experts of a mixture."""

    @property
    def parameters(self) -> int:
        """Weights of all copies, biases not counted."""
        return self.copies * self.inputs * self.outputs


class Architecture(Value):
    """A decoder-only transformer, as far as memory and time depend on it."""

    name: str
    model_type: str
    """`model_type` of the config, such as `llama`."""
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    """Width of the MLP; of one expert in a mixture."""
    vocabulary: int = Field(gt=0)
    """Rows of the embedding table, padding rows included."""
    tied: bool
    """Whether the head is the embedding table."""
    gated: bool = True
    """SwiGLU and its kin: two input projections whose product goes on; else one projection and an activation."""
    linears: tuple[Linear, ...]
    """The linear layers of one decoder layer under their real module names (fused ones as fused)."""
    norm: Literal["rms", "layer"] = "rms"
    norms: int = 2
    """Norms over `hidden` in a decoder layer."""
    norm_bias: bool = False
    qk_norm: int = 0
    """Weights of the norms on queries and keys in a decoder layer (`2 * head_dim` in Qwen3)."""
    outer_norms: int = 1
    """Norms over `hidden` outside of the layers: the final one, and in Bloom one behind the embeddings."""
    other: int = 0
    """Further weights of a decoder layer: attention sinks."""
    positions: int = 0
    """Rows of a table of learned positions."""
    head_bias: bool = False
    experts: int = 1
    experts_used: int = 1
    """Experts that each token goes through."""
    window: int | None = None
    """Tokens that attention looks back, where it is limited on every layer."""
    doubts: tuple[str, ...] = ()
    """Why a forecast for it is uncertain, in words; empty for a plain decoder."""

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers below the head: what a quantization quantizes."""
        return self.layers * sum(one.parameters for one in self.linears)

    @property
    def active_linear_parameters(self) -> int:
        """Those that one token is multiplied with: all of them, unless there are experts."""
        return self.layers * sum(
            one.parameters * min(one.copies, self.experts_used) // one.copies for one in self.linears
        )

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding table, the learned positions and, where it is its own, the head."""
        tables = 1 if self.tied else 2
        return self.hidden * (tables * self.vocabulary + self.positions) + self.head_bias * self.vocabulary

    @property
    def small_parameters(self) -> int:
        """Weights of norms and biases."""
        per_norm = self.hidden * (2 if self.norm_bias else 1)
        biases = sum(one.copies * one.outputs for one in self.linears if one.bias)
        return self.layers * (self.norms * per_norm + self.qk_norm + self.other + biases) + self.outer_norms * per_norm

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.embedding_parameters + self.small_parameters
