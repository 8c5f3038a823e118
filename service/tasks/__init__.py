"""One typed async function for each task, and what it computes with. Nothing here knows HTTP."""
