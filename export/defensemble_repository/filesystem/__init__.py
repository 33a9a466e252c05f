"""Files and folders: how they are read, written so that a power cut does no harm, and locked, and how interrupts wait meanwhile."""
