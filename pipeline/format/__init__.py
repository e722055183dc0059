"""What a shard holds (format `grainmill/1`): records and their checks, run lengths, polygons, names of licences."""
