"""Pricing: what work costs: step costs learned from the device, prices of tokens, what is charged to whom."""
