"""Floor 5: the two commands a person types, kernelctl and kerneld."""
