"""Long documents to summaries: flat, windowed and hierarchical attention at equal budget."""
