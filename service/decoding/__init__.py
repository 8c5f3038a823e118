"""Images decoded and prepared in processes that can be killed."""
