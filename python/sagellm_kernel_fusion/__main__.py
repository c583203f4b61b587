"""`python -m sagellm_kernel_fusion` is the program `kf`."""

from .cli import main

if __name__ == "__main__":
    main()
