"""Where regard plugs into what people already have. Each room is one host; nothing here is on by import."""
