"""Low-rank adaptation (LoRA): a frozen model learns by small adapters beside its kernels."""
