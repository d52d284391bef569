exports.default = async () => 'plain';
