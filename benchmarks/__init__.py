"""Scripts that measure; results/ has their results, with machine and date."""
