"""Real clients, real servers, and a proxy between them that breaks the line on purpose."""
