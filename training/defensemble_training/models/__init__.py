"""Networks, their masks, and how masks are drawn and placed."""
