"""kf's own kernels in Triton: the kernels, and the rows of a manager's table that launch them."""
