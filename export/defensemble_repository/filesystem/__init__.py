"""Read, write and lock files so that neither a power failure nor an interrupt leaves them half written."""
