"""What tests compare against: plain, slow and written from the source that each names."""
