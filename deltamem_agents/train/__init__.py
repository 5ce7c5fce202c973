"""Training adapters on a frozen backbone."""
