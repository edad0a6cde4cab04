"""Tests that need a CUDA GPU. A package, because two modules called conftest cannot both have that name."""
