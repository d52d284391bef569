import 'dart:convert';
import 'dart:io';

void main() {
  final request = jsonDecode(File(_path('REQUEST', '/request.json')).readAsStringSync()) as Map<String, dynamic>;
  final result = File(_path('RESULT', '/result.json'));
  try {
    final body = request['body'];
    final name = body is Map && body['name'] is String ? body['name'] : 'world';
    stdout.writeln('greeting $name');
    result.writeAsStringSync(jsonEncode({
      'body': {'greeting': 'Hello, $name!'},
    }));
  } catch (error) {
    result.writeAsStringSync(jsonEncode({
      'body': {
        'error': {'type': '${error.runtimeType}', 'message': '$error'},
      },
    }));
    exitCode = 1;
  }
}

String _path(String file, String usual) => Platform.environment['CONTAINERPUB_${file}_FILE'] ?? usual;
