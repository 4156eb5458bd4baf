"""Reference implementations: one short, tested PyTorch file a method.

    from reference_impls import attach
    adapter = attach("lora", model, rank=8)      # or reference_impls.reparameterized.lora.attach(model, rank=8)

Every file offers ``attach(model, ...) -> Adapter``; the contract is in :mod:`reference_impls.adapter`.
"""

from reference_impls.registry import attach, methods

__all__ = ["attach", "methods"]
