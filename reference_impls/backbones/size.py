"""Dimensions of a backbone: small ones to run, real ones for the ``meta`` device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Dimensions, in the letters of the papers; the defaults are the small models every claim is measured on."""

    L: int = 3
    """blocks (of the encoder, where there are two stacks)"""
    d: int = 32
    """width of the residual stream"""
    f: int = 64
    """hidden width of the feed-forward sublayer"""
    heads: int = 4
    head_dim: int = 8
    V: int = 24
    """vocabulary"""
    L_dec: int = 0
    """blocks of the decoder, where there are two stacks"""
    positions: int = 64
    """learned absolute positions; 0: relative (encoder-decoder) or none"""
    C: int = 4
    """classes of the task head"""
    gated: bool = False
    """feed-forward gate(x) * up(x) instead of up(x)"""
    norm: str = "layer"
    """"layer" (gain and bias) or "rms" (gain only)"""
    bias: bool = True
    """whether linear layers have biases"""
    patch: int = 4
    image: int = 16

    @property
    def inner(self) -> int:
        """Width of all attention heads together."""
        return self.heads * self.head_dim
