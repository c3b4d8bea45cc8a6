use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::support::rabbitmq::RabbitMq;
use crate::support::unique;

async fn channel(url: &str) -> Channel {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("connects");
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    channel
}

async fn declare(channel: &Channel, queue: &str) -> u32 {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.queue_declare(queue.into(), options, arguments).await.expect("a quorum queue").message_count()
}

#[tokio::test]
async fn it_keeps_a_confirmed_message_over_a_crash_and_loses_it_when_wiped() {
    let mut broker = RabbitMq::start().await;
    let url = broker.amqp_url();
    let queue = unique("queue");
    {
        let channel = channel(&url).await;
        declare(&channel, &queue).await;
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm = channel.basic_publish("".into(), queue.as_str().into(), options, b"hello", properties);
        assert!(confirm.await.expect("sent").await.expect("confirmed").is_ack());
    }

    broker.queue_on_disk(&queue).await;
    broker.kill9();
    assert!(Connection::connect(&url, ConnectionProperties::default()).await.is_err(), "it is down");
    broker.start_again().await;
    {
        let channel = channel(&url).await;
        declare(&channel, &queue).await;
        let message = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.expect("answers");
        assert_eq!(message.expect("kept").data, b"hello");
    }

    broker.wipe().await;
    assert_eq!(declare(&channel(&url).await, &queue).await, 0, "nothing is left");
}
