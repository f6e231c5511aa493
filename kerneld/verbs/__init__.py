"""The verbs of the kernel, one file per noun; `kerneld.kernel` joins them."""
