"""xFormers: whether the compiled part was loaded (xformers/_cpp_lib.py)."""

_built_with_cuda = True
