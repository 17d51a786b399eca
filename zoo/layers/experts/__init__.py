"""Mixture of experts: the router, the dispatch of tokens to experts, the layer and its block."""
