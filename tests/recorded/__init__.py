"""What was said over the link by versions before this one, and how it was recorded (`record`)."""
