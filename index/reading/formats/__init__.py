"""The text of one file of each format, as Markdown: headings, lists, tables and code keep their marks."""
