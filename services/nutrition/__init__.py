"""The nutrition service: what a recipe contains."""
