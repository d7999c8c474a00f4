"""What builds and checks the course; nothing here is part of the package that readers import."""
