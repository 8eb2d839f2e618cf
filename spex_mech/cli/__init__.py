"""The terminal: options, commands, what is printed. Nothing else imports it."""
