# Copyright 2026 The glip_hf authors. MIT licence.
