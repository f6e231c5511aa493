"""Floor 2: devices behind one contract, and the process that runs each of them."""
