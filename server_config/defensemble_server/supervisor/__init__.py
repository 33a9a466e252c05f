"""The supervisor of a running server: it asks every model on a schedule, repairs what answers wrongly, and reports on its own port."""
