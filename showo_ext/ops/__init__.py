"""The torch operators, one file each: public function, validation, schema, implementations, fake, autograd."""
