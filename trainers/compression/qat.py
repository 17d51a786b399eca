"""Quantization-aware training: see `zoo.layers.rounding`, which also works without a trainer."""

from trainers.compression.low_rank import refuse_tied_products
from trainers.compression.technique import Compressor, Technique
from trainers.config.compress import check_decay
from zoo.layers.rounding import quantize, update_kernel_ranges


class QuantizationAwareTraining(Technique):
    """`compress.qat`: makes layers compute with 8-bit kernels and outputs."""

    def change_model(self, model, settings):
        if settings.qat.on:
            refuse_tied_products(model)
            check_decay(settings.qat.decay)
            quantize(model, settings.qat.decay)
        return model

    def compressor(self, step, settings, total_steps):
        return KernelRanges(step.net) if settings.qat.on else None


class KernelRanges(Compressor):
    """Compressor that recomputes the ranges of the kernels from the current weights."""

    def restore(self) -> None:
        """Recomputes the ranges. After an update the next forward pass recomputes the ranges."""
        update_kernel_ranges(self.model)

    begin = restore
