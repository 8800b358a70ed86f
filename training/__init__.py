"""What produced `resources/`: data set converters, preprocessing, the trainer, validation and export."""
